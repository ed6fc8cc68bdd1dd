# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: progress
type: stdout
short_description: One line per task, with the time that it took
author:
  - The Clachan maintainers (@clachan)
description:
  - Shows plays and roles as headings and each task as one line with its outcome and time. On a terminal the line of the
    running task stands there while it runs.
  - Errors are shown in full. Tasks that were skipped on all hosts are not shown.
  - The recap is the usual one.
extends_documentation_fragment:
  - default_callback
"""

import os
import sys
import time

from ansible import constants as C
from ansible.plugins.callback import CallbackBase

WIDTH = 68
DETAILS = ("msg", "reason", "module_stderr", "module_stdout", "stderr", "stdout")
COLORS = {"ok": C.COLOR_OK, "changed": C.COLOR_CHANGED, "failed": C.COLOR_ERROR, "ignored": C.COLOR_WARN}
HOSTS = ("ok", "changed", "unreachable", "failures", "skipped", "rescued", "ignored")


class Running:
    """The task that runs: its name, and the hosts by outcome."""

    def __init__(self, name, indent):
        self.name, self.indent, self.began = name, indent, time.monotonic()
        self.ended, self.outcomes = self.began, {}

    def note(self, outcome):
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self.ended = time.monotonic()

    def outcome(self):
        """The worst one; None when all hosts skipped it."""
        return next((word for word in ("failed", "ignored", "changed", "ok") if word in self.outcomes), None)

    def hosts(self):
        many = sum(self.outcomes.values()) > 1
        return (
            " (%s)" % ", ".join("%d %s" % (self.outcomes[word], word) for word in sorted(self.outcomes)) if many else ""
        )


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "clachan.platform.progress"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._running = self._role = None
        self._play = None
        self._live = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._print = self._display.display
        if self._live:
            self._main = os.getpid()
            self._display.display = self._above

    # -- what Ansible tells ------------------------------------------------------------------------------------------

    def v2_playbook_on_play_start(self, play):
        self._finish()
        self._play, self._role = play.get_name().strip(), None

    def v2_playbook_on_task_start(self, task, is_conditional):
        self._begin(task)

    def v2_playbook_on_handler_task_start(self, task):
        self._begin(task)

    def v2_playbook_on_cleanup_task_start(self, task):
        self._begin(task)

    def v2_runner_on_ok(self, result):
        self._handle_warnings_and_exception(result)
        self._show_difference(result)
        if self._running and not result.task.action.endswith(("include_role", "include_tasks")):
            self._running.note("changed" if result.result.get("changed") else "ok")

    def v2_runner_on_skipped(self, result):
        self._handle_warnings_and_exception(result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._handle_warnings_and_exception(result)
        self._note_failure("ignored" if ignore_errors else "failed")
        self._explain(result.host.get_name(), result.result)

    def v2_runner_item_on_failed(self, result):
        self._handle_warnings_and_exception(result)
        label = self._get_item_label(result.result)
        self._explain("%s (item=%s)" % (result.host.get_name(), label), result.result)

    def v2_runner_item_on_ok(self, result):
        self._show_difference(result)

    def v2_runner_on_unreachable(self, result):
        self._handle_warnings_and_exception(result)
        self._note_failure("failed")
        self._explain("%s (not reached)" % result.host.get_name(), result.result)

    def v2_playbook_on_no_hosts_remaining(self):
        self._finish()
        self._print("No host is left.", color=C.COLOR_ERROR)

    def v2_playbook_on_stats(self, stats):
        self._finish()
        self._print("")
        for host in sorted(stats.processed):
            counts = stats.summarize(host)
            words = ["%s=%-4d" % (word.replace("failures", "failed"), counts[word]) for word in HOSTS]
            failed = counts["failures"] or counts["unreachable"]
            color = C.COLOR_ERROR if failed else C.COLOR_CHANGED if counts["changed"] else C.COLOR_OK
            self._print("%-26s : %s" % (host, " ".join(words).rstrip()), color=color)

    # -- what is shown -----------------------------------------------------------------------------------------------

    def _begin(self, task):
        self._finish()
        self._running = Running(task.name or task.action, "    " if task._role else "  ")
        self._next_role = task._role.get_name() if task._role else None
        if self._live:
            self._headings()
            self._draw()

    def _headings(self):
        """The play's and the role's names, before the first line that belongs to them."""
        if self._play:
            self._print("\n%s" % self._play, color=C.COLOR_HIGHLIGHT)
            self._play = None
        if self._next_role != self._role:
            self._role = self._next_role
            if self._role:
                self._print("  %s" % self._role)

    def _finish(self):
        """End the running task's line with its outcome and time."""
        running, self._running = self._running, None
        if running is None:
            return
        self._erase()
        outcome = running.outcome()
        if outcome is None:
            return
        self._headings()
        name = "%s%s%s" % (running.indent, running.name, running.hosts())
        self._print("%-*s %7.1f s  %s" % (WIDTH, name, running.ended - running.began, outcome), color=COLORS[outcome])

    def _note_failure(self, outcome):
        if self._running:
            self._running.note(outcome)

    def _explain(self, where, result):
        """Everything that a failed result says."""
        if not self._live and self._running:
            self._headings()
        self._display.display("    %s:" % where, color=C.COLOR_ERROR)
        said = [str(result[key]).rstrip() for key in DETAILS if result.get(key)]
        for text in said or [self._dump_results(result)]:
            self._display.display("\n".join("      %s" % line for line in text.splitlines()), color=C.COLOR_ERROR)

    def _show_difference(self, result):
        difference = result.result.get("diff")
        if result.task.diff and difference and result.result.get("changed"):
            text = self._get_diff(difference)
            if text:
                self._display.display(text)

    # -- the live line -----------------------------------------------------------------------------------------------

    def _above(self, msg, *args, **kwargs):
        """Display.display for everybody: the text goes above the live line. In a worker it is only passed on."""
        mine = os.getpid() == self._main and self._running is not None
        if mine:
            self._erase()
        self._print(msg, *args, **kwargs)
        if mine:
            self._draw()

    def _draw(self):
        self._print("%s%s ..." % (self._running.indent, self._running.name), newline=False)

    def _erase(self):
        if self._live:
            self._print("\r\033[2K", newline=False)
