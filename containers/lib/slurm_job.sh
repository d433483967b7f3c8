#!/usr/bin/env bash
# The batch script of every job that containers/cmd.sh submits, and what each process of a shared training begins with.
#   slurm_job.sh DIR SELF REQUEUE     the batch script: runs DIR/command.sh, passes signals on, requeues, writes DIR/status
#   slurm_job.sh --task DIR           one process of several (srun): its place among them, then DIR/command.sh
# DIR is on a filesystem that the login node sees too: what becomes of a job is read there, since Slurm forgets it.
set -uo pipefail
readonly SAVED=85 # the exit status of a training that has saved and is to be started again

outlast() { # $child; sets `status`. A signal to us ends `wait` as well, at the very moment that the child ends perhaps
    while :; do
        wait "$child"
        status=$?
        kill -0 "$child" 2>/dev/null || break
    done
    if [ "$status" -gt 128 ]; then
        wait "$child" 2>/dev/null
        [ $? -eq 127 ] || { wait "$child" 2>/dev/null; status=$?; }
    fi
}

if [ "$1" = --task ]; then
    dir=$2 child=""
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    trap 'kill -USR1 "$child"' USR1
    trap 'kill -TERM "$child"' TERM
    (trap '' USR1; exec bash "$dir/command.sh") & # too early for Python's handler, the notice must not kill
    child=$!
    outlast
    # srun ends all when one fails. One that has saved has not: the first may still be writing its checkpoint.
    [ "$status" -ne "$SAVED" ] || { : >"$dir/saved"; status=0; }
    exit "$status"
fi

dir=$1 self=$2 requeue=$3
id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
id=${id:-$SLURM_JOB_ID}
status_file=$dir/status${SLURM_ARRAY_TASK_ID:+.$SLURM_ARRAY_TASK_ID}
rm -f "$status_file" "$dir/saved"
echo "# job $id on ${SLURM_JOB_NODELIST:-?}, $(date '+%Y-%m-%d %H:%M:%S'), restart ${SLURM_RESTART_COUNT:-0}"

end() { # the last word, for whoever follows the job
    printf '%s\n' "$1" >"$status_file.tmp" && mv -f "$status_file.tmp" "$status_file"
    exit "$1"
}

refuse() {
    echo "error: $1" >&2
    end 1
}

master() { # where the processes meet: an address of the first node that the others can reach, never the loopback
    local first address=""
    if [ "${SLURM_JOB_NUM_NODES:-1}" -eq 1 ]; then
        MASTER_ADDR=127.0.0.1
        return
    fi
    first=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-}" | head -n 1)
    [ -n "$first" ] || refuse "scontrol names no node of '${SLURM_JOB_NODELIST:-}': the processes have no place to meet"
    address=${SPEECHLAB_MASTER_ADDR:-}
    # Here and not inside a container, which may know no names but its own.
    [ -n "$address" ] || read -r address _ < <(getent ahostsv4 "$first")
    if [[ ${address:-127.} == 127.* ]]; then # /etc/hosts often gives a host's own name to the loopback
        address=$(scontrol --oneliner show node "$first")
        address=${address#* NodeAddr=} address=${address%% *}
        read -r address _ < <(getent ahostsv4 "$address")
    fi
    case $address in
        "" | 127.* | localhost) refuse "$first, the first of ${SLURM_JOB_NUM_NODES} nodes, has no address but \
'$address', by which the others can't reach it: mend DNS or /etc/hosts there, or set SPEECHLAB_MASTER_ADDR" ;;
    esac
    MASTER_ADDR=$address
}

# Under --export=NONE (SBATCH_EXPORT, slurm.conf) srun would hand on nothing either: not where the processes meet. And
# Slurm's programs may be on the PATH of whoever submitted alone.
export SLURM_EXPORT_ENV=ALL
command -v scontrol >/dev/null || eval "$(grep '^export PATH=' "$dir/command.sh")"

child="" told=""
trap 'told=$told:USR1; [ -z "$child" ] || kill -USR1 "$child" 2>/dev/null' USR1
if [ "${SLURM_NTASKS:-1}" -gt 1 ]; then
    trap 'told=$told:TERM' TERM # Slurm tells the tasks itself; srun would kill them
    master
    MASTER_PORT=$((10000 + ${SLURM_JOB_ID:-0} % 20000)) # below the ports that systems give away themselves
    export MASTER_ADDR MASTER_PORT
    echo "# $SLURM_NTASKS processes on ${SLURM_JOB_NUM_NODES:-1} node(s) meet at $MASTER_ADDR:$MASTER_PORT"
    srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash "$self" --task "$dir" </dev/null &
else
    trap 'told=$told:TERM; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM
    # Not every cluster binds a job to its CPUs; more threads than these wait for one another.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
    [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || export SPEECHLAB_SHARD=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT
    (! "$requeue" || trap '' USR1; exec bash "$dir/command.sh") </dev/null &
fi
child=$!
outlast
[ "$status" -ne 0 ] || [ ! -e "$dir/saved" ] || status=$SAVED

case $status:$told in
    $SAVED:* | 138:*USR1*) # 138: the notice came before anything could hear it; the last checkpoint serves
        # After SIGTERM, the job is being cancelled or over its time, or Slurm requeues it without our help.
        if "$requeue" && [[ $told != *TERM* ]] && [ ! -e "$dir/cancelled" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
            echo "# job $id: saved; back into the queue"
            ! scontrol requeue "$id" || exit 0
            echo "error: Slurm does not requeue job $id: what it saved is kept, and the same command goes on" >&2
        fi ;;
esac
end "$status"
