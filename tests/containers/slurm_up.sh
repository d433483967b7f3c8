#!/usr/bin/env bash
# Bring a one-node Slurm up on a Debian machine, as root. Progress goes to stderr; the last line on stdout is what to
# export:   eval "$(tests/containers/slurm_up.sh)"
# Safe to repeat: what runs is kept. `slurm_up.sh down` ends the daemons that it started.
set -euo pipefail

state=${SPEECHLAB_SLURM_STATE:-${XDG_CACHE_HOME:-$HOME/.cache}/speechlab/slurm}
config=$state/slurm.conf

say() { echo "slurm_up: $1" >&2; }
fail() { say "error: $1"; exit 1; }

running() { # is the daemon with this name, which we started, still there?
    local pid
    [ -f "$state/$1.pid" ] && read -r pid <"$state/$1.pid" && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ]
}

down() {
    local name pid
    for name in slurmd slurmctld munged; do
        running "$name" || continue
        read -r pid <"$state/$name.pid"
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 100); do running "$name" || break; sleep 0.1; done
        ! running "$name" || kill -9 "$pid" 2>/dev/null || true
        rm -f "$state/$name.pid"
    done
    say "down"
}

start() { # NAME COMMAND...: in a session of its own, its number in NAME.pid
    local name=$1
    shift
    running "$name" || { setsid "$@" </dev/null >"$state/$name.out" 2>&1 & echo $! >"$state/$name.pid"; }
}

case ${1:-up} in
    up) ;;
    down) down; exit ;;
    *) fail "unknown '$1': up (the default) or down" ;;
esac
[ "$(id -u)" -eq 0 ] || fail "only root can start Slurm's daemons"
for program in slurmctld slurmd munged sbatch; do
    command -v "$program" >/dev/null && continue
    command -v apt-get >/dev/null || fail "$program is missing, and there is no apt-get to install it"
    say "installing Slurm"
    apt-get update -qq >&2 || fail "apt-get update failed: no network?"
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -qq --no-install-recommends slurm-wlm munge >&2 ||
        fail "apt-get failed"
    break
done

mkdir -p "$state/state" "$state/spool" "$state/munge"
host=$(hostname -s)
cpus=$(getconf _NPROCESSORS_ONLN) # nproc would say what OMP_NUM_THREADS says
memory=$(awk '/^MemTotal/ {print int($2 / 1024 * 0.8)}' /proc/meminfo)
# jobacct_gather/linux kills a job that takes more memory than it asked for, without cgroups; cred_expire is how long a
# requeued job waits before it starts again.
cat >"$config.new" <<END_OF_CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$state/munge/socket,cred_expire=20
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
KillWait=20
SlurmctldPidFile=$state/slurmctld.own
SlurmdPidFile=$state/slurmd.own
StateSaveLocation=$state/state
SlurmdSpoolDir=$state/spool
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=$((memory / cpus))
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=cpu Nodes=$host Default=YES MaxTime=INFINITE OverSubscribe=NO State=UP
PartitionName=closed Nodes=$host MaxTime=INFINITE State=INACTIVE
END_OF_CONF
if ! cmp -s "$config.new" "$config"; then
    down
    mv "$config.new" "$config"
fi
rm -f "$config.new"
export SLURM_CONF=$config

if [ ! -s "$state/munge/key" ]; then
    (umask 077; head -c 1024 /dev/urandom >"$state/munge/key")
fi
chmod 0711 "$state/munge" # munged wants the socket's folder open to all, and nothing above it writable by others
start munged munged --foreground --force --key-file="$state/munge/key" --socket="$state/munge/socket" \
    --log-file="$state/munge/log" --seed-file="$state/munge/seed" --pid-file="$state/munge/pid"
for _ in $(seq 50); do munge --socket="$state/munge/socket" --no-input >/dev/null 2>&1 && break; sleep 0.1; done
start slurmctld slurmctld -D
start slurmd slurmd -D
for _ in $(seq 120); do
    case $(sinfo --noheader --partition=cpu --format=%t 2>/dev/null) in
        idle | mix | alloc) printf 'export SLURM_CONF=%q\n' "$config"; exit ;;
        down* | drain*) scontrol update NodeName="$host" State=RESUME 2>/dev/null || true ;;
    esac
    sleep 0.25
done
fail "the node does not come up: see $state/*.log and $state/*.out"
