"""Print the lower bounds of pyproject.toml as a pip constraints file.

CI installs with it what it tests as the lower bounds:
`pip install … --constraint floors.txt`.
"""

import pathlib
import sys
import tomllib

PYPROJECT = pathlib.Path(__file__).resolve().parent.parent / "pyproject.toml"


def floors(project: dict) -> list[str]:
    """Turn every `name>=version` of the run-time requirements into `name==version`."""
    extras = project["optional-dependencies"].values()
    requirements = [*project["dependencies"], *(r for extra in extras for r in extra)]
    for requirement in requirements:
        if requirement.count(">=") != 1 or "," in requirement:
            raise ValueError(f"{requirement!r} is not of the form 'name>=version'.")
    return sorted(requirement.replace(">=", "==") for requirement in requirements)


if __name__ == "__main__":
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    sys.stdout.writelines(f"{line}\n" for line in floors(project))
