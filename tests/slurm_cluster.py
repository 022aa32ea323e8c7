"""A Slurm cluster of several machines on this one, on loopback, for tests.

Debian's ``slurm-wlm`` and ``munge``, as root. Its slurmd takes one node a host, so each runs in a UTS namespace where
the host has the node's name, and in a mount namespace where ``/etc/hosts`` knows that name as 127.0.0.1.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "unshare")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={home}/munge.socket
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool/%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.%n.log
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0,bf_interval=2,defer_batch
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdTimeout=8
InactiveLimit=0
KillWait=2
MinJobAge=300
MessageTimeout=10
MaxArraySize={array}
MaxJobCount={jobs}
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    if os.name != "posix" or os.getuid() != 0:
        return "starting Slurm's daemons needs root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"no {', '.join(absent)} here (Debian: slurm-wlm munge)" if absent else ""


class SlurmCluster:
    """Use as a context manager; ``environment`` is what Slurm's commands need."""

    def __init__(self, home: Path, nodes: int = 2, gpus: int = 0, array: int = 1001, jobs: int = 10_000) -> None:
        self.home, self.gpus = home, gpus
        self.names = [f"n{number}" for number in range(1, nodes + 1)]
        self.environment = {"SLURM_CONF": str(home / "slurm.conf")}
        self._limits = {"array": array, "jobs": jobs}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> SlurmCluster:
        self._configure()
        home = self.home
        (home / "munge.key").write_bytes(os.urandom(128))
        (home / "munge.key").chmod(0o400)
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        # It refuses folders that others may write to, as every folder under /tmp is.
        self._start(
            "munged", "--foreground", "--force", *(f"--{flag}={home}/munge.{end}" for flag, end in files.items())
        )
        wait_for((home / "munge.socket").exists, 10)
        self.start_controller()
        for name in self.names:
            self.start_node(name)
        wait_for(
            lambda: self.ask("sinfo", "-h", "-N", "-p", "main", "-o", "%t").split() == ["idle"] * len(self.names), 30
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.ask("scancel", "-u", "root")
        for name in [*(name for name in self._daemons if name.startswith("slurmd")), "slurmctld", "munged"]:
            daemon = self._daemons.pop(name, None)
            if daemon is None:
                continue
            steps = self._steps(daemon.pid)
            daemon.terminate()
            try:
                daemon.wait(8)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
            _kill(steps)

    def ask(self, *words: str) -> str:
        """What a command of Slurm prints; nothing where it fails."""
        done = subprocess.run(words, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=60)
        return done.stdout

    def start_controller(self) -> None:
        self._start("slurmctld", "-D", "-f", str(self.home / "slurm.conf"))

    def kill_controller(self) -> None:
        """As when its machine dies."""
        daemon = self._daemons.pop("slurmctld")
        daemon.kill()
        daemon.wait()

    def start_node(self, name: str) -> None:
        # The folder ``unseen`` is another one there, as a folder of one machine alone is.
        script = """
            hostname "$1" && mount --bind "$2/hosts" /etc/hosts && mount -t tmpfs none "$2/unseen" &&
            exec slurmd -D -N "$1" -f "$2/slurm.conf"
        """
        words = ("--uts", "--mount", "sh", "-c", script, "sh", name, str(self.home))
        self._start("unshare", *words, name=f"slurmd-{name}")

    def kill_node(self, name: str) -> None:
        """As when a machine dies, with all that ran on it."""
        daemon = self._daemons.pop(f"slurmd-{name}")
        # What watches over a job first, or it reports its death as the job's own.
        victims = self._steps(daemon.pid)
        daemon.kill()
        daemon.wait()
        _kill(victims)

    def requeued_start_now(self) -> None:
        """Let jobs that run again start at once; Slurm holds them for two minutes."""
        for line in self.ask("squeue", "-h", "-r", "-o", "%i|%r").splitlines():
            job, _, reason = line.partition("|")
            if reason.startswith("BeginTime"):
                self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")

    def _steps(self, daemon: int) -> list[psutil.Process]:
        """The processes that watch over jobs of a slurmd, with all that these started."""
        place = _host(daemon)
        found = []
        for process in psutil.process_iter(["name"]):
            if (process.info["name"] or "").startswith("slurmstepd") and _host(process.pid) == place:
                found += [process, *process.children(recursive=True)]
        return found

    def _configure(self) -> None:
        for folder in ("state", "spool", "unseen", *(f"spool/{name}" for name in self.names)):
            (self.home / folder).mkdir(parents=True, exist_ok=True)
        port, *ports = _free_ports(1 + len(self.names))
        generic = f" Gres=gpu:{self.gpus}" if self.gpus else ""
        nodes = [
            f"NodeName={name} NodeHostName={name} NodeAddr=127.0.0.1 Port={own} CPUs=4 RealMemory=6000{generic}"
            for name, own in zip(self.names, ports, strict=True)
        ]
        devices = []
        for name in self.names if self.gpus else ():
            for number in range(self.gpus):
                # A device like /dev/null stands for a GPU.
                os.mknod(self.home / f"{name}-gpu{number}", 0o020666, os.makedev(1, 3))
                devices.append(f"NodeName={name} Name=gpu File={self.home}/{name}-gpu{number}\n")
        (self.home / "gres.conf").write_text("".join(devices))
        (self.home / "cgroup.conf").write_text("CgroupAutomount=no\n")
        hosts = "".join(f"127.0.0.1 {name}\n" for name in self.names)
        (self.home / "hosts").write_text(Path("/etc/hosts").read_text() + hosts)
        values = {
            "host": socket.gethostname(),
            "port": port,
            "home": self.home,
            "nodes": "\n".join(nodes),
            **self._limits,
        }
        (self.home / "slurm.conf").write_text(CONFIGURATION.format(**values))

    def _start(self, *command: str, name: str = "") -> None:
        with (self.home / f"{name or command[0]}.out").open("ab") as log:
            self._daemons[name or command[0]] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )


def wait_for(ready: Callable[[], bool], seconds: float) -> None:
    """Raises TimeoutError where it is not so within so many seconds."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.05)


def _host(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/uts")
    except OSError:
        return ""


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.Error:
            continue


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
