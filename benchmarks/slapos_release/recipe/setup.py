"""The zc.buildout recipe of the smallest SlapOS software release."""

from setuptools import setup

setup(
    name="peer-recipe",
    version="1",
    py_modules=["peer_recipe"],
    entry_points={"zc.buildout": ["software = peer_recipe:Software", "instance = peer_recipe:Instance"]},
)
