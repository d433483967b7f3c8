# shellcheck shell=bash disable=SC2154  # slurm.sh and cmd.sh have set these
# A job from its submission to its end: its log to our output, its end as our exit status, its cancelling. Sourced by
# slurm.sh. Slurm is asked about the one job once a second (every other SPEECHLAB_SLURM_POLL). What the job's own files
# say comes first, because Slurm forgets a job after some minutes, and accounting is not everywhere.

stopped="" job="" over=false
answer="" active=0 saying=""
state="" reason="" restarts=0 node="" memory="" limit="" exit_code="" failed=""

number_of() { # SIGNAL: the exit status for it
    case $1 in INT) echo 130 ;; HUP) echo 129 ;; *) echo 143 ;; esac
}

nap() { sleep "$1" || true; } # Ctrl-C goes to the whole group: a sleep that it ends is no failure

value() { # NAME: of $record, one line of scontrol's; sets `found`
    case $record in *" $1="*) found=${record#* "$1"=} found=${found%% *} ;; *) found="" ;; esac
}

look() { # what does Slurm say of the job? `answer`: yes, gone, silent; `active`: how many of its tasks are not over
    local out record found
    if ! out=$(scontrol --oneliner show job "$job" 2>&1); then
        case $out in
            *[Ii]"nvalid job id"*) answer=gone active=0 ;;
            *) answer=silent active=1 saying=${out##*$'\n'} ;;
        esac
        return 0
    fi
    answer=yes active=0 failed=""
    while IFS= read -r record; do
        case $record in *" JobState="*) ;; *) continue ;; esac
        value JobState && state=$found
        value Reason && reason=$found
        value Restarts && restarts=$found
        value NodeList && node=$found
        value TimeLimit && limit=$found
        value ExitCode && exit_code=$found
        value MinMemoryNode && memory=$found
        [ -n "$memory" ] || { value MinMemoryCPU && memory=${found:+$found a CPU}; }
        case $state in
            COMPLETED) ;;
            FAILED | CANCELLED | TIMEOUT | OUT_OF_MEMORY | NODE_FAIL | BOOT_FAIL | DEADLINE | PREEMPTED)
                value ArrayTaskId && failed="$failed $found:$state:${node:-?}:$exit_code" ;;
            *) active=$((active + 1)) ;;
        esac
    done <<<"$out"
}

drain() { # what the log has that was not shown yet
    local size
    [ -z "$array" ] && [ -f "$dir/log" ] || return 0
    size=$(($(wc -c <"$dir/log"))) # opening the file makes NFS look again
    [ "$size" -gt "$seen" ] || return 0
    tail -c "+$((seen + 1))" "$dir/log" | head -c $((size - seen)) || true
    seen=$size
}

ended() { # of an array: how many of its tasks have left a status (`count`), and is each of them 0?
    local file one good=true
    count=0
    for file in "$dir"/status "$dir"/status.*[0-9]; do
        [ -f "$file" ] || continue
        read -r one <"$file" || continue
        count=$((count + 1))
        [ "$one" = 0 ] || good=false
    done
    $good
}

news() { # what a waiting person wants to know
    if [ "$state:$reason" != "$told" ] && [ "$state" = PENDING ] && [ "$ticks" -gt 20 ]; then
        echo "note: job $job waits: $reason" >&2
        told=$state:$reason
    fi
    if [ "$state" = RUNNING ] && [ "$restarts" -gt "$restarted" ] 2>/dev/null; then
        echo "note: job $job is started again (restart $restarts)" >&2
        restarted=$restarts
    fi
    if [ -n "$array" ] && [ "$count" -ne "$shown" ]; then
        echo "note: job $job: $count of $array tasks have ended" >&2
        shown=$count
    fi
}

cancel() { # end the job, whatever becomes of us: in a session of its own, where nobody's Ctrl-C or SIGKILL comes
    local -a apart=(bash)
    ! command -v setsid >/dev/null || apart=(setsid bash)
    : >"$dir/cancelled"
    # shellcheck disable=SC2016  # the words are that shell's
    "${apart[@]}" -c 'trap "" INT TERM HUP
        # A training saves when it is told to, and ends; what has not begun or does not listen is not asked.
        if "$2" && scancel --batch --signal=USR1 "$1" 2>/dev/null; then
            for _ in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 0.5; [ ! -e "$3/status" ] || exit 0; done
        fi
        for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
            out=$(scancel "$1" 2>&1) && exit 0
            case $out in *nvalid*|*ompleting*|*inished*) exit 0 ;; esac
            sleep 2
        done' - "$job" "$requeue" "$dir" </dev/null >/dev/null 2>&1 &
}

give_up() { # after a signal of ours
    local until
    echo "note: cancelling job $job" >&2
    cancel
    # tools/stages.py kills what is not gone 10 seconds after Ctrl-C.
    until=$((SECONDS + ($([ "$stopped" = INT ] && echo 8 || echo 90))))
    while [ $SECONDS -lt $until ]; do
        drain
        look
        if [ "$answer" = gone ] || [ "$active" -eq 0 ]; then
            over=true
            break
        fi
        nap "$poll"
    done
    drain
    status=$(number_of "$stopped")
    if $over; then
        rm -f "$dir/job"
        echo "note: job $job is cancelled" >&2
        # As a local training does on SIGTERM: saved, start me again.
        [ "$stopped" = INT ] || [ "$(cat "$dir/status" 2>/dev/null)" != 85 ] || status=85
    else
        over=true # as far as we are concerned: the canceller is at work
        echo "note: job $job is told to end, and has not ended yet (squeue --jobs=$job; scancel $job)" >&2
    fi
}

follow() { # $job to its end; sets `status`
    local seen=0 ticks=0 told="" restarted=0 shown=0 count=0 silent_since=0 good
    restarts=0
    over=false
    while :; do
        [ -z "$stopped" ] || { give_up; return; }
        drain
        good=false
        ! ended || good=true
        # A status that is not 0 may be a start's that Slurm is going to repeat: there Slurm has the last word.
        if $good && [ "$count" -gt 0 ] && { [ -z "$array" ] || [ "$count" -eq "$array" ]; }; then break; fi
        if [ $((ticks % (ticks < 20 ? 10 : 2))) -eq 0 ] || [ "$count" -gt "$shown" ]; then
            look
            case $answer in
                yes)
                    [ "$silent_since" -eq 0 ] || echo "note: the Slurm controller answers again" >&2
                    silent_since=0
                    [ "$active" -gt 0 ] || break
                    case $state:$reason in PENDING:*aunch*failed*)
                        cancel
                        over=true
                        fail "job $job can't be started: Slurm holds it ($reason): the node's slurmd log says why" ;;
                    esac
                    if [ -n "$array" ] && { ! $good || [ -n "$failed" ]; } && [ ! -e "$dir/cancelled" ]; then
                        cancel # no need to wait for the others
                    fi ;;
                gone) break ;;
                silent)
                    [ -z "$stopped" ] || continue # Ctrl-C ended scontrol too
                    if [ "$silent_since" -eq 0 ]; then
                        silent_since=$((SECONDS + 1))
                        echo "note: the Slurm controller does not answer ($saying): trying on" >&2
                    elif [ $((SECONDS + 1 - silent_since)) -ge "$patience" ]; then
                        over=true
                        fail "the Slurm controller has not answered for $patience s: job $job may still be at work \
(squeue --jobs=$job); the same command follows it again"
                    fi ;;
            esac
            news
        fi
        ticks=$((ticks + 1))
        # Files cost nothing: a short job is not to wait for us.
        if [ "$ticks" -lt 20 ]; then nap 0.1; else nap "$poll"; fi
    done
    over=true
    rm -f "$dir/job"
    drain
    news
    conclude
}

conclude() { # `status` from what is known, and one line for what only Slurm knows
    local filed="" size
    [ -z "$array" ] || { conclude_array; return; }
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do # NFS shows a new file after seconds
        [ ! -f "$dir/status" ] || { read -r filed <"$dir/status"; break; }
        [ "$answer" = gone ] || break
        nap "$poll"
    done
    drain
    status=${filed:-$(slurms_status "$exit_code")}
    if [ "$answer" = gone ]; then
        [ -n "$filed" ] || { status=1; echo "error: job $job is gone, and left no status in $dir: was it cancelled while it waited?" >&2; }
        return
    fi
    [ "$status" != 0 ] || [ "$state" = COMPLETED ] || [ -n "$filed" ] || status=1
    size=${memory:-0}
    [ "$size" != 0 ] && size="it had $size" || size="it had the cluster's default"
    case $state in
        OUT_OF_MEMORY) echo "error: job $job was killed for memory on $node: $size; SPEECHLAB_SLURM=mem=... asks for more" >&2 ;;
        TIMEOUT | DEADLINE) echo "error: job $job was ended at its time limit, $limit: SPEECHLAB_SLURM=time=... asks for more; \
what it had saved is kept" >&2 ;;
        NODE_FAIL | BOOT_FAIL) echo "error: job $job lost its node ($node), and Slurm does not start it again: the same command goes on" >&2 ;;
        CANCELLED)
            if killed_for_memory "$dir/log"; then
                echo "error: job $job was killed for memory on $node: $size; SPEECHLAB_SLURM=mem=... asks for more" >&2
            else
                echo "error: job $job was cancelled, and not from here (scancel, or an administrator)" >&2
            fi ;;
        PREEMPTED) echo "error: job $job had to make room for another, and Slurm does not start it again: the same command goes on" >&2 ;;
        *)
            if killed_for_memory "$dir/log" || [ "$status" = 137 ]; then
                echo "error: job $job was killed on $node$(killed_for_memory "$dir/log" || echo ", perhaps") for memory: $size; \
SPEECHLAB_SLURM=mem=... asks for more" >&2
            elif [ ! -f "$dir/log" ]; then
                echo "error: job $job left no log in $dir: does $node see this folder? (--jobs; a shared filesystem is needed)" >&2
            fi ;;
    esac
}

conclude_array() { # the first task that failed speaks for all
    local file first="" one=0 n
    status=0
    for ((n = 1; n <= array; n++)); do
        file=$dir/status.$n one=""
        [ ! -f "$file" ] || read -r one <"$file"
        [ "$one" != 0 ] || continue
        # What was cancelled because of another is not the reason.
        if [ -z "$first" ] || [[ -n $one && $one != 143 && $status =~ ^(1|143)$ ]]; then first=$n status=${one:-1}; fi
    done
    [ -n "$first" ] || return 0
    [ ! -f "$dir/log.$first" ] || tail -n 5 "$dir/log.$first" >&2
    one=""
    for file in $failed; do case $file in "$first":*) one=$(printf '%s' "$file" | cut -d: -f2-3 | tr : ' ') ;; esac; done
    ! killed_for_memory "$dir/log.$first" || one="killed for memory, it had ${memory:-?}: SPEECHLAB_SLURM=mem=... asks for more"
    echo "error: job ${job}_$first of $array failed with status $status${one:+ ($one)}; its log: $dir/log.$first" >&2
}

killed_for_memory() { # LOG: did Slurm say so in it?
    [ -f "$1" ] && grep -qE '^(slurmstepd|srun)[^ ]*: .*(oom|[Oo]ut [Oo]f [Mm]emory|memory limit)' "$1"
}

slurms_status() { # "status:signal" as scontrol says it: as a shell would say it
    case $1 in
        *:0) echo "${1%:*}" ;;
        [0-9]*:[0-9]*) echo $((128 + ${1#*:})) ;;
        *) echo 1 ;;
    esac
}
