# shellcheck shell=bash disable=SC2154  # cmd.sh has set the options
# --backend slurm, sourced by cmd.sh: submits the command as a job (slurm_job.sh runs it there) and follows it
# (slurm_follow.sh). Each job has a folder of its own, which the compute nodes see too:
#   command.sh   what is run: the environment that matters, then cmd.sh --backend local, so that the engine is looked
#                for, and its command line made, where it runs
#   job          the job's number, as long as nobody has seen its end
#   log          what it says (log.N of an array's task N); status (status.N): its exit status, once it has ended
#   cancelled    there if we ended it
# The folders of the last ten jobs are kept.

# --- slurm.conf ---

conf_files=() conf_keys=() conf_words=() defaults=() submit=()

read_conf() { # FILE: adds its lines
    local file=$1 number=0 line
    local -a words
    while read -r line || [ -n "$line" ]; do
        number=$((number + 1))
        line=${line%$'\r'} # as an editor under Windows ends its lines
        [ "$number" -gt 1 ] || line=${line#$'\xef\xbb\xbf'} # and begins its files
        IFS=$' \t' read -r -a words <<<"${line%%#*}"
        case ${words[0]-} in
            "") continue ;;
            command) [ ${#submit[@]} -gt 0 ] || submit=("${words[@]:1}"); continue ;;
            option | default) [[ ${words[1]-} == ?*=?* ]] && [[ ${words[0]}${#words[@]} =~ ^(option.*|default2)$ ]] ;;
            *) false ;;
        esac || fail "$file: line $number: '$line': lines are command WORDS, default NAME=VALUE, option NAME=VALUE WORDS" 2
        case ${words[0]} in
            default) defaults+=("${words[1]}") ;;
            option) conf_files+=("$file") conf_keys+=("${words[1]}") conf_words+=("${words[*]:2}") ;;
        esac
    done <"$file"
}

translate() { # NAME VALUE: adds what slurm.conf says of it to `asked`; a line for the value goes before one for all
    local file key i word
    for file in "${configs[@]}"; do
        for key in "$1=$2" "$1=*"; do
            for ((i = 0; i < ${#conf_keys[@]}; i++)); do
                if [ "${conf_files[i]}" = "$file" ] && [ "${conf_keys[i]}" = "$key" ]; then
                    set -f
                    for word in ${conf_words[i]}; do asked+=("${word//\$0/$2}"); done
                    set +f
                    return
                fi
            done
        done
    done
    fail "${configs[0]} has no line 'option $1=* ...', so nothing is known of $1=$2" 2
}

ask() { # puts sbatch's words for all options into `asked`, from slurm.conf, SPEECHLAB_SLURM and --slurm
    local pair name most="" named=" "
    local -a pairs=() given=()
    # shellcheck disable=SC2206  # a list of words
    { set -f; given=(${SPEECHLAB_SLURM:-}); set +f; }
    given+=(${slurm_options[@]+"${slurm_options[@]}"})
    asked=()
    [ -z "$array" ] || pairs+=(num_threads=1)
    pairs=(${defaults[@]+"${defaults[@]}"} ${pairs[@]+"${pairs[@]}"} ${given[@]+"${given[@]}"})
    for ((i = ${#pairs[@]} - 1; i >= 0; i--)); do # the last one counts: said for this run, for an array, by a file
        pair=${pairs[i]} name=${pairs[i]%%=*}
        [[ $pair == ?*=* ]] || fail "--slurm '$pair': NAME=VALUE is needed (SPEECHLAB_SLURM has several, with blanks between)" 2
        case $named in *" $name "*) continue ;; esac
        named="$named$name "
        case $name in
            gpu | nodes | procs | array) [ $i -lt ${#defaults[@]} ] || fail "--slurm $pair: cmd.sh has options of its own for this" 2 ;;
            max_jobs_run) most=%${pair#*=} ;;
            save) ! $requeue || translate save "${pair#*=}" ;;
            *) translate "$name" "${pair#*=}" ;;
        esac
    done
    translate gpu "$ngpu"
    translate nodes "$nodes"
    translate procs "$procs"
    [ -z "$array" ] || translate array "$array$most"
}

# --- submitting ---

command_file() { # prints command.sh
    local name
    echo "#!/usr/bin/env bash"
    echo "# What one process of the job runs; made by containers/cmd.sh."
    # Said here and not left to sbatch, which hands on nothing where a site or a person says --export=NONE. Secrets are
    # not written into a file; and where a node has its temporary files is the node's affair.
    for name in $(compgen -e); do
        case $name in
            SPEECHLAB_BACKEND | SPEECHLAB_PROGRESS | SPEECHLAB_SLURM*) continue ;;
            PATH | LD_LIBRARY_PATH | PYTHONPATH | HOME | USER | LANG | LC_ALL | \
                SPEECHLAB_NESTED | SPEECHLAB_PYTHON) ;;
            *) asked_for "$name" || continue
               ! is_secret "$name" || continue ;;
        esac
        echo "export $name=$(quoted "${!name}")"
    done
    echo "export SPEECHLAB_BACKEND=local SPEECHLAB_PROGRESS=lines" # a bar in a file is one long line
    echo "exec $(quoted "${here[@]}" "$@")"
}

refused() { # what sbatch said, as one line
    local line said=""
    while IFS= read -r line; do
        line=${line#sbatch: } line=${line#error: }
        line=${line#Batch job submission failed: }
        [ -z "$line" ] || said="$said${said:+; }$line"
    done <<<"$1"
    printf '%s' "$said"
}

job_number() { # TEXT: the last line that is a job's number: as --parsable says it, perhaps with a cluster's name, or to people
    # sbatch may be a site's own script, and may say more than the number, before it or after it.
    printf '%s\n' "$1" | tr -d '\r' |
        sed -n -E 's/^[[:space:]]*([0-9]+)(;[^[:space:]]+)?[[:space:]]*$/\1/p
                   s/^[[:space:]]*Submitted batch job ([0-9]+)( on cluster .*)?[[:space:]]*$/\1/p' | tail -n 1
}

queued() { # the number of the job that the queue knows by our name, or nothing
    local out
    out=$(squeue --noheader --name="$name" --format=%A 2>/dev/null) || out=""
    job_number "$out"
}

prune() { # removes the folders of all jobs but the last few; never one that may be at work, or is about to be submitted
    local folder file begun kept=1 # the one that will be made
    while IFS= read -r folder; do
        folder=${folder%/}
        # `job` stands there until its end was seen.
        [ -f "$folder/command.sh" ] && [ ! -e "$folder/job" ] || continue
        begun=false # else it has not been submitted yet
        for file in "$folder"/log* "$folder"/status* "$folder"/cancelled; do [ ! -e "$file" ] || begun=true; done
        $begun || continue
        kept=$((kept + 1))
        [ "$kept" -le "$keep" ] || rm -rf "$folder"
    done < <(ls -td "$jobs"/*/ 2>/dev/null)
}

submit_job() { # sets `job`
    local out status since=$SECONDS said=false
    mkdir -p "$dir" 2>/dev/null || fail "$dir can't be made: --jobs names a folder that the compute nodes see as well"
    printf '%s\n' "$made" >"$dir/command.sh"
    while :; do
        # Ctrl-C must not come between Slurm's taking the job and our knowing its number.
        status=0
        out=$(trap '' INT TERM HUP; "${line[@]}" 2>"$dir/sbatch.err") || status=$?
        job=""
        [ "$status" -ne 0 ] || job=$(job_number "$out")
        if [ -n "$job" ]; then
            printf '%s\n' "$job" >"$dir/job"
            rm -f "$dir/sbatch.err"
            return
        fi
        out=$(cat "$dir/sbatch.err")$out
        if [ "$status" -eq 0 ]; then # taken, it seems, and nobody said under which number
            job=$(queued)
            [ -z "$job" ] || { printf '%s\n' "$job" >"$dir/job"; return; }
            fail "$(quoted "${submit[@]}") names no job, so nobody can follow it (perhaps: squeue --name=$name; scancel \
--name=$name); it said: $(refused "$out")"
        fi
        [ -z "$stopped" ] || { rm -r "$dir"; exit "$(number_of "$stopped")"; }
        case $out in
            *"ontact slurm controller"* | *"timed out"*)
                # It may have taken the job and not have got to say so.
                job=$(queued)
                [ -z "$job" ] || { printf '%s\n' "$job" >"$dir/job"; return; }
                if [ $((SECONDS - since)) -lt "$patience" ]; then
                    $said || echo "note: the Slurm controller does not answer ($(refused "$out")): trying on" >&2
                    said=true
                    nap 2
                    continue
                fi ;;
        esac
        rm -r "$dir"
        fail "Slurm does not take the job: $(refused "$out") (asked: $(quoted ${asked[@]+"${asked[@]}"}))"
    done
}

earlier() { # a job in this folder that a killed run left: the same command is followed to its end, another is cancelled
    local file
    for file in "$jobs"/*/job; do
        [ -f "$file" ] || continue
        read -r job <"$file" || continue
        dir=${file%/job}
        look
        [ "$answer" != silent ] || fail "job $job of an earlier run may still be at work, and the Slurm controller does \
not answer ($saying): try again, or if it is gone: rm $(quoted "$file")"
        if [ "$active" -gt 0 ] && [ ! -e "$dir/cancelled" ] && [ "$(cat "$dir/command.sh")" = "$made" ]; then
            echo "note: job $job of an earlier run is still at work on this: following it" >&2
            return 0
        fi
        if [ "$active" -gt 0 ]; then
            echo "note: job $job of an earlier run is still at work here: waiting for its end" >&2
            [ -e "$dir/cancelled" ] || cancel
            while look; [ "$answer" != gone ] && [ "$active" -gt 0 ] && [ -z "$stopped" ]; do nap "$poll"; done
            [ -z "$stopped" ] || exit "$(number_of "$stopped")"
        fi
        rm -f "$file"
    done
    job=""
    return 1
}

slurm_job_done() { # runs the command as a job, or an array of them, to its end; sets `status`
    local kind=$1
    shift
    local stamp word
    stamp=$(date +%m%d-%H%M%S)-$$
    name=$kind-$stamp dir=$jobs/$kind-$stamp
    made=$(command_file "$@")
    ask
    # In a file's name for sbatch, % begins a pattern.
    line=("${submit[@]}" --parsable --job-name="$name" --chdir="$PWD" --output="${dir//%/%%}/log${array:+.%a}"
        --open-mode=append ${asked[@]+"${asked[@]}"} "$lib/slurm_job.sh" "$dir" "$lib/slurm_job.sh" "$requeue")
    if $dry_run; then
        [ -z "$array" ] || echo "SPEECHLAB_SHARD=0/$array $(quoted "${here[@]}" "$@")"
        quoted "${line[@]}"
        echo "# $dir/command.sh"
        printf '%s\n' "$made"
        return
    fi
    for word in "${submit[0]}" scontrol scancel; do
        command -v "$word" >/dev/null ||
            fail "--backend slurm: no Slurm client here (no $word on PATH): run on a login node, or use --backend local"
    done
    trap 'stopped=${stopped:-INT}' INT
    trap 'stopped=${stopped:-TERM}' TERM
    trap 'stopped=${stopped:-HUP}' HUP
    trap '[ -z "$job" ] || scancel --batch --signal=USR1 "$job"' USR1
    trap '[ -z "$job" ] || $over || cancel' EXIT # a failure of our own
    if ! earlier; then
        name=$kind-$stamp dir=$jobs/$kind-$stamp
        if [ -n "$array" ]; then # lay out what the tasks share
            SPEECHLAB_SHARD=0/$array SPEECHLAB_BACKEND=local "${here[@]}" "$@" || exit $?
            [ -z "$stopped" ] || exit "$(number_of "$stopped")"
        fi
        prune
        submit_job
        echo "note: job $job is submitted; its log: $(quoted "$dir")/log" >&2
    fi
    follow
    trap - INT TERM HUP USR1 EXIT
}

slurm() { # all of --backend slurm, for the command; does not return
    local kind=$1 word previous="" user=${SPEECHLAB_SLURM_CONF:-}
    kind=${kind##*/}
    for word in "$@"; do
        [ "$previous" != -m ] || { kind=${word##*.}; break; }
        previous=$word
    done
    kind=${kind//[^A-Za-z0-9_]/_}
    [ -z "$user" ] || [ -f "$user" ] || fail "SPEECHLAB_SLURM_CONF=$user: no such file" 2
    [ -n "$user" ] || [ ! -f "$root/containers/slurm.conf" ] || user=$root/containers/slurm.conf
    configs=(${user:+"$user"} "$root/containers/slurm.conf.example")
    # The user's command counts, so it is read first; and so do the user's defaults, so they come last.
    local -a own=()
    [ -z "$user" ] || read_conf "$user"
    own=(${defaults[@]+"${defaults[@]}"}) defaults=()
    read_conf "$root/containers/slurm.conf.example"
    defaults+=(${own[@]+"${own[@]}"})
    patience=${SPEECHLAB_SLURM_PATIENCE:-600} poll=${SPEECHLAB_SLURM_POLL:-0.5} keep=10
    case $jobs in /*) ;; *) jobs=$PWD/$jobs ;; esac

    here=("$root/containers/cmd.sh" --backend local --ngpu "$ngpu" --engine "$engine")
    [ -z "$image" ] || here+=(--image "$image")
    here+=(--)
    if $dry_run && [ "$engine" != none ]; then
        echo "# on the node: $(SPEECHLAB_NESTED=1 "${here[@]:0:1}" --dry_run "${here[@]:1}" "$@")"
    fi
    if [ -n "$log" ] && ! $dry_run; then
        mkdir -p "$(dirname "$log")"
        exec > >(trap '' INT TERM HUP; exec tee "$log") 2>&1
    fi
    status=0
    slurm_job_done "$kind" "$@"
    [ -n "$array" ] && [ "$status" -eq 0 ] || exit "$status"
    if $dry_run; then quoted "${here[@]}" "$@"; exit 0; fi
    exec "${here[@]}" "$@" # put together what the tasks made
}

lib=$root/containers/lib
# shellcheck source=containers/lib/slurm_follow.sh
source "$lib/slurm_follow.sh"
