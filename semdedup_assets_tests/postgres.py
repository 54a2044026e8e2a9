"""A Postgres server of our own on loopback, and Dagster's record in it, as this repository's `dagster.yaml` has it."""

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psycopg2

from semdedup_assets_tests.dagster_process import free_port

SKIP = "SEMDEDUP_NO_POSTGRES"

_HOST, _USER = "127.0.0.1", "dagster"
# With all that a URL would need quoted.
_PASSWORD = "p@ss:word/1"
_PATIENCE = 60.0


class PostgresNotFoundError(Exception):
    """There is no server to start."""


@dataclass(frozen=True)
class PostgresServer:
    """A server that runs, and as many databases as are wanted."""

    port: int
    password: str = _PASSWORD
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def new_database(self) -> dict[str, str]:
        """An empty database, as the environment variables that `dagster.yaml` names."""
        name = f"dagster{next(self._numbers)}"
        with closing(_connected(self.port)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute(f"CREATE DATABASE {name}")
        return {
            "DAGSTER_PG_HOST": _HOST,
            "DAGSTER_PG_DB": name,
            "DAGSTER_PG_USER": _USER,
            "DAGSTER_PG_PASSWORD": self.password,
        }

    def dagster_yaml(self, text: str) -> str:
        """A `dagster.yaml` with its commented Postgres in place of SQLite, at this server's port."""
        return uncommented(text, "storage").replace("port: 5432", f"port: {self.port}")


@contextmanager
def running_postgres(*, durable: bool = False) -> Iterator[PostgresServer]:
    """A server with a folder of its own, until the block ends.

    Args:
        durable: whether it waits for the disk, as one whose data must outlive a power cut does.

    Raises:
        PostgresNotFoundError: its programs are not here.
    """
    programs, user = _programs(), _other_user()
    # Not below pytest's folders, which nobody but their owner may enter.
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder, port = Path(name), free_port()
        (folder / "password").write_text(_PASSWORD)
        for path in (folder, folder / "password"):
            os.chown(path, user.get("user", -1), user.get("group", -1))
        options = {"cwd": folder, "env": {"LC_ALL": "C"}, **user}
        initialise = [programs / "initdb", "-D", "data", "-U", _USER, "--pwfile=password", "--no-sync"]
        initialise += ["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale"]
        subprocess.run(initialise, check=True, stdout=subprocess.DEVNULL, **options)
        command = [programs / "postgres", "-D", "data", "-h", _HOST, "-p", str(port)]
        command += ["-c", "unix_socket_directories=", "-c", f"fsync={'on' if durable else 'off'}"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **options)
        try:
            _wait_until_it_answers(server, port, folder / "log")
            yield PostgresServer(port)
        finally:
            # It ends whoever is still connected, and does not wait for them.
            server.send_signal(signal.SIGINT)
            server.wait()


def uncommented(text: str, block: str) -> str:
    """A configuration with a commented block in use, in place of the block of that name that was.

    Args:
        text: YAML.
        block: a top-level key.

    Raises:
        ValueError: there is no such comment, or more than one.
    """
    comment = re.compile(rf"^# {block}:.*\n(?:#  .*\n)+", re.MULTILINE)
    found = comment.findall(text)
    if len(found) != 1:
        message = f"{len(found)} commented blocks `{block}:`, not one"
        raise ValueError(message)
    used = re.compile(rf"^{block}:.*\n(?: .*\n)+", re.MULTILINE)
    return comment.sub(lambda match: re.sub("^# ", "", match[0], flags=re.MULTILINE), used.sub("", text))


def _programs() -> Path:
    """The folder of the newest server: Debian keeps them out of PATH."""
    versions = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    newest = max(versions, key=lambda path: int(path.parts[-3]), default=None)
    found = newest or shutil.which("postgres")
    if found is None:
        message = "no Postgres server in /usr/lib/postgresql or on PATH; install it (apt-get install postgresql)"
        raise PostgresNotFoundError(message)
    return Path(found).parent


def _other_user() -> dict[str, Any]:
    """As whom the server runs: it refuses to be root."""
    if os.getuid() != 0:
        return {}
    user = next(each for each in pwd.getpwall() if each.pw_name in ("postgres", "nobody"))
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _connected(port: int) -> Any:
    return psycopg2.connect(host=_HOST, port=port, user=_USER, password=_PASSWORD, dbname="postgres")


def _wait_until_it_answers(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    begun = time.monotonic()
    while True:
        try:
            _connected(port).close()
        except psycopg2.OperationalError as error:
            if server.poll() is None and time.monotonic() - begun < _PATIENCE:
                time.sleep(0.05)
                continue
            message = f"Postgres does not answer; the end of its log:\n{log.read_text()[-2000:]}"
            raise RuntimeError(message) from error
        return
