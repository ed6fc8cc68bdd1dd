"""The smallest SlapOS software release: each instance has one sleeping service and one promise that passes."""

import pathlib


class _Recipe:
    def __init__(self, buildout, name, options):
        self.folder = pathlib.Path(buildout["buildout"]["directory"])

    def write(self, path, text, mode=0o644):
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)
        return str(target)

    def update(self):
        return self.install()


class Software(_Recipe):
    """Leaves the buildout profile from which each instance is made."""

    def install(self):
        lines = [
            "[buildout]",
            "parts = service",
            "offline = true",
            f"eggs-directory = {self.folder}/eggs",
            f"develop-eggs-directory = {self.folder}/develop-eggs",
            "[service]",
            "recipe = peer_recipe:instance",
        ]
        return [self.write("instance.cfg", "\n".join(lines) + "\n")]


class Instance(_Recipe):
    """One service, one promise."""

    def install(self):
        for name in ("plugin", "report", "run"):
            (self.folder / "etc" / name).mkdir(parents=True, exist_ok=True)
        return [
            self.write("etc/service/sleeper", "#!/bin/sh\nexec sleep 100000\n", 0o755),
            self.write("etc/promise/passes", "#!/bin/sh\nexit 0\n", 0o755),
        ]
