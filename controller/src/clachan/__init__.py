"""Clachan: controller, agent, client and command of a self-hosted platform driven by Ansible."""

__version__ = "0.1.0"
