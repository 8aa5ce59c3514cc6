"""PostgreSQL as Debian ships it: the source package, and the binary packages of exactly the same version.

Where from is what the system's own package sources say, read at run time. Lists and archives are kept in a private apt
directory, and packages that the system has in another version are unpacked beside the suite, so that the system stays
as it was. A mirror may list a source package that it does not have: then the newest version that it has is taken.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.suites.workplace import SuiteFailed, note, run

_TARGETS = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)|$(SIGNED_BY)"
_DEFAULT_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True)
class Release:
    """A PostgreSQL and the sources that it was built from.

    Attributes:
      version: of the Debian packages.
      installation: with bin/ and lib/.
      tree: the unpacked source package.
    """

    version: str
    installation: Path
    tree: Path

    @property
    def pg_regress(self) -> Path:
        return self.installation / "lib/pgxs/src/test/regress/pg_regress"


def obtain(major: int, work: Path, home: Path) -> Release:
    """The newest release of `major` whose sources can be had; sources are kept in `work`, programs unpacked in `home`.

    Raises:
      SuiteFailed: packages are missing and we may not install them, or no version can be had.
    """
    package = f"postgresql-{major}"
    _need(
        {
            f"/usr/lib/postgresql/{major}/bin/postgres": package,
            "/usr/bin/dpkg-source": "dpkg-dev",
            "/usr/bin/gcc": "gcc",
        }
    )
    kept = work / "sources"
    kept.mkdir(parents=True, exist_ok=True)
    options = _private_apt(work / "apt")
    run(["apt-get", *options, "update", "-qq"])
    version, tree = _sources(package, kept, options, "src")
    system = Release(version, Path(f"/usr/lib/postgresql/{major}"), tree)
    if version == _installed(package) and version == _installed(f"postgresql-server-dev-{major}"):
        return system
    debs = kept / f"{package}_{version}_debs"
    debs.mkdir(exist_ok=True)
    names = [package, f"postgresql-client-{major}", f"postgresql-server-dev-{major}"]
    run(["apt-get", *options, "download", "-qq", *(f"{name}={version}" for name in names)], cwd=debs)
    for deb in debs.glob("*.deb"):
        run(["dpkg-deb", "--extract", deb, home / "root"])
    return Release(version, home / f"root/usr/lib/postgresql/{major}", tree)


def _need(files: dict[str, str]) -> None:
    missing = [package for file, package in files.items() if not Path(file).exists()]
    if not missing:
        return
    if os.geteuid() or shutil.which("apt-get") is None:
        raise SuiteFailed(f"the suite needs packages: apt-get install {' '.join(missing)}")
    note(f"installing {' '.join(missing)}")
    wait = ["-o", "DPkg::Lock::Timeout=300"]
    run(["apt-get", *wait, "update", "-qq"])
    run(["apt-get", *wait, "install", "-y", "-qq", *missing], within=1800)


def _installed(package: str) -> str:
    """The version that the system has; empty where it has none."""
    done = subprocess.run(["dpkg-query", "--show", "--showformat=${Version}", package], capture_output=True, text=True)
    return done.stdout.strip()


def _private_apt(home: Path) -> list[str]:
    """apt-get's options for a directory of our own, which knows the system's Debian mirrors and their sources."""
    listed = run(["apt-get", "indextargets", "--format", _TARGETS, "Created-By: Packages"])
    lines = []
    for line in sorted(set(listed.splitlines())):
        uri, release, component, origin, keys = line.split("|")
        if origin == "Debian":
            signed_by = keys if keys.startswith("/") else _DEFAULT_KEYS
            lines += [f"{kind} [signed-by={signed_by}] {uri} {release} {component}\n" for kind in ("deb", "deb-src")]
    if not lines:
        raise SuiteFailed("apt-get knows no mirror of Debian's here: apt-get update")
    for directory in ("lists/partial", "cache/archives/partial"):
        (home / directory).mkdir(parents=True, exist_ok=True)
    (home / "sources.list").write_text("".join(lines))
    settings = {
        "Dir::Etc::sourcelist": home / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": home / "lists",
        "Dir::Cache": home / "cache",
        "APT::Sandbox::User": "root",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def source_package(package: str, work: Path, member: str) -> tuple[str, Path]:
    """The newest version of a source package that can be had, and where it is unpacked, which has `member`.

    Raises:
      SuiteFailed: none can be had.
    """
    _need({"/usr/bin/dpkg-source": "dpkg-dev"})
    kept = work / "sources"
    kept.mkdir(parents=True, exist_ok=True)
    options = _private_apt(work / "apt")
    run(["apt-get", *options, "update", "-qq"])
    return _sources(package, kept, options, member)


def _sources(package: str, home: Path, options: list[str], member: str) -> tuple[str, Path]:
    reasons = []
    for version in _versions(package, options):
        tree = home / f"{package}_{version}"
        if (tree / member).exists():
            return version, tree
        note(f"fetching the sources of {package} {version}")
        description = f"{package}_{version.rpartition(':')[2]}.dsc"
        try:
            run(["apt-get", *options, "source", "-qq", "--download-only", f"{package}={version}"], cwd=home)
            run(["dpkg-source", "--no-check", "--extract", description, tree], cwd=home)
        except SuiteFailed as error:
            reasons.append(str(error))
            continue
        return version, tree
    raise SuiteFailed("; ".join(reasons) or f"no package source has {package}")


def _versions(package: str, options: list[str]) -> list[str]:
    """What the mirrors list, the newest first."""
    text = run(["apt-cache", *options, "showsrc", package])
    ordered: list[str] = []
    for version in {line.split()[1] for line in text.splitlines() if line.startswith("Version: ")}:
        ordered.insert(sum(_newer(other, version) for other in ordered), version)
    return ordered


def _newer(version: str, other: str) -> bool:
    return subprocess.run(["dpkg", "--compare-versions", version, "gt", other]).returncode == 0


def build_module(release: Release, directory: Path) -> None:
    """regress.so in `directory`, beside autoinc.so and refint.so, which the server's package ships."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(release.tree / "src/test/regress/regress.c", directory)
    pg_config = release.installation / "bin/pg_config"
    include = run([pg_config, "--includedir-server"]).strip()
    run(["gcc", "-O1", "-fPIC", "-shared", f"-I{include}", "-o", "regress.so", "regress.c"], cwd=directory)
    library = Path(run([pg_config, "--pkglibdir"]).strip())
    for name in ("autoinc.so", "refint.so"):
        shutil.copy(library / name, directory)
