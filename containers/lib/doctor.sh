# shellcheck shell=bash disable=SC2154,SC2034  # $engine, $image, $ngpu, $backend, $root ... are cmd.sh's
# Sourced by cmd.sh --doctor: one table of what a run needs, each problem with the line that mends it. It changes nothing.
# "BAD" stands before what keeps the chosen options from working, "note" before what may bite later.

broken=0

row() { # row STATE WHAT FOUND [MEND]
    printf '%-5s %-12s %s\n' "$1" "$2" "$3"
    [ -z "${4:-}" ] || printf '%-5s %-12s   mend: %s\n' "" "" "$4"
    [ "$1" != BAD ] || broken=$((broken + 1))
}

bad_if() { # bad_if CONDITION...: "BAD" where it holds, else "note": the state of a row
    if "$@"; then printf BAD; else printf note; fi
}

free_gb() { # free space in GB where a path lies, or would
    local path=$1
    while [ ! -e "$path" ]; do path=$(dirname "$path"); done
    df -Pk "$path" | awk 'NR == 2 { printf "%.1f", $4 / 1048576 }'
}

less() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a + 0 < b + 0) }'; } # less 1.5 2

doctor_engines() {
    local name version here=""
    for name in apptainer singularity podman docker; do
        command -v "$name" >/dev/null || continue
        version=$("$name" --version 2>/dev/null | head -n 1) || version="$name: does not answer"
        here="$here${here:+; }$version"
    done
    if [ "$engine" = auto ]; then
        if [ -z "$image" ]; then engine=none; else engine=$( (choose_engine 2>/dev/null && echo "$engine") || echo missing); fi
    fi
    if [ "$engine" = none ]; then
        row ok engine "none is asked for; here: ${here:-none}"
    elif [ "$engine" = missing ] || ! command -v "$engine" >/dev/null; then
        row BAD engine "$engine is not here; here: ${here:-none}" "install it (containers/README.md), or --engine none"
    elif [ "$engine" = docker ] && ! docker info >/dev/null 2>&1; then
        row BAD engine "$here; docker's daemon doesn't answer" "start it, or have yourself put in the group docker: docker info"
    elif [ "$engine" = podman ] && [ "$(id -u)" -ne 0 ] && ! grep -qs "^$(id -un):\|^$(id -u):" /etc/subuid; then
        row BAD engine "$here; no subordinate ids for $(id -un)" "usermod --add-subuids 100000-165535 --add-subgids \
100000-165535 $(id -un)   (as root), then podman system migrate"
    else
        row ok engine "$engine is chosen; here: $here"
    fi
    case ${inside:-} in "") ;; *) row note inside "already in a container ($inside): commands run as they are" ;; esac
}

doctor_image() {
    local said
    [ "$engine" != none ] && [ "$engine" != missing ] && command -v "$engine" >/dev/null || return 0
    if [ -z "$image" ]; then
        row BAD image "none is named" "containers/build.sh --engine $engine, then --image or SPEECHLAB_IMAGE"
    elif said=$( (find_image) 2>&1); then
        find_image
        row ok image "$image ${image_id:+($image_id)}"
    else
        row BAD image "$image: ${said#error: }" "containers/build.sh --engine $engine"
    fi
}

# What the stages' own Python sees, in the chosen engine: a line of name=value each.
probe='import os, shutil, site, sys
print("python=" + sys.executable, sys.version.split()[0])
try:
    import torch
except Exception as error:  # whatever it is, the table shows it
    print("error=", type(error).__name__, error)
    sys.exit(0)
print("torch=" + torch.__version__)
print("file=" + torch.__file__)
print("cuda=" + str(torch.version.cuda or ""))
print("gpus=" + str(torch.cuda.device_count() if torch.cuda.is_available() else 0))
print("names=" + ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))
try:
    print("nccl=" + ".".join(map(str, torch.cuda.nccl.version())))
except (AttributeError, RuntimeError):  # a build without it
    print("nccl=")
print("shm=%d" % (shutil.disk_usage("/dev/shm").total >> 20 if os.path.isdir("/dev/shm") else -1))
print("user=" + site.getusersitepackages() * bool(site.ENABLE_USER_SITE))'

value() { printf '%s\n' "$answer" | sed -n "s/^$1=//p" | head -n 1; }

host_python() { # for engine none, as tools/stagelib/interpreter.py looks
    local python version pin other=""
    pin=$(sed -n 's/.*"torch==\([0-9.]*\)".*/\1/p' "$root/setup.py" 2>/dev/null) || pin=""
    for python in "${SPEECHLAB_PYTHON:-}" "${VIRTUAL_ENV:-/nowhere}/bin/python" "${CONDA_PREFIX:-/nowhere}/bin/python" \
        "$(command -v python3 || true)" "$root/.venv/bin/python"; do
        [ -n "$python" ] && [ -x "$python" ] || continue
        version=$("$python" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null) || continue
        if [ "$python" = "${SPEECHLAB_PYTHON:-}" ] || [ "${version%%+*}" = "${pin:-${version%%+*}}" ]; then
            echo "$python"
            return
        fi
        other=${other:-$python}
    done
    echo "${other:-python3}"
}

doctor_gpu() { # doctor_gpu PROBLEMS: how many the engine and the image have
    local driver="" count=0 python=python asked=false need least
    [ "$ngpu" -eq 0 ] || asked=true
    for need in /dev/nvidia[0-9]*; do [ ! -e "$need" ] || count=$((count + 1)); done
    if command -v nvidia-smi >/dev/null; then
        driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1) || driver=""
        [ -z "$driver" ] || count=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ') || true
    fi
    if [ "$count" -gt 0 ] && [ -n "$driver" ]; then
        row ok "GPU driver" "$driver, $count GPU(s): $(nvidia-smi -L | sed 's/ (UUID.*//' | tr '\n' ';')"
    elif [ "$count" -gt 0 ]; then
        row "$(bad_if $asked)" "GPU driver" "$count device(s) in /dev, but nvidia-smi doesn't answer" \
            "reload or reinstall NVIDIA's driver (nvidia-smi must list the GPUs)"
    elif $asked; then
        row BAD "GPU driver" "no GPU: no nvidia-smi that answers, no /dev/nvidia0" \
            "take a node that has one (srun --gres=gpu:1 ...), or --ngpu 0"
    else
        row ok "GPU driver" "no GPU here, and --ngpu 0 asks for none"
    fi

    [ "$engine" != none ] || python=$(host_python)
    [ "$1" -eq 0 ] || return 0 # without an engine or an image there is no Python to ask
    if ! $asked || [ "$count" -eq 0 ]; then need=0; else need=$ngpu; fi
    if ! answer=$(SPEECHLAB_NGPU=0 bash "$root/containers/cmd.sh" --engine "$engine" ${image:+--image "$image"} --ngpu "$need" \
        --backend local -- "$python" -c "$probe" 2>&1); then
        row BAD torch "$(last_line "$answer")" "see the rows above; $([ "$engine" = none ] && echo tools/setup.sh ||
            echo "containers/build.sh --engine $engine")"
        answer=""
        return
    fi
    if [ -n "$(value error)" ]; then
        row BAD torch "$(value python): $(value error)" "$([ "$engine" = none ] && echo tools/setup.sh || echo containers/build.sh)"
        return
    fi
    row ok torch "$(value torch) in $(value python)"
    if [ "$need" -gt 0 ] && [ "$(value gpus)" -lt "$ngpu" ]; then
        row BAD "GPU in torch" "torch sees $(value gpus), the driver $count" \
            "an image with CUDA (build.sh without --cpu), CUDA_VISIBLE_DEVICES unset, and see the rows around this one"
    elif [ "$need" -gt 0 ]; then
        row ok "GPU in torch" "$(value gpus): $(value names)"
    fi
    # The oldest driver that runs a CUDA (NVIDIA's table of minor version compatibility).
    case $(value cuda) in 13.*) least=580 ;; 12.*) least=525 ;; 11.*) least=450 ;; *) least=0 ;; esac
    if [ -z "$(value cuda)" ]; then
        row "$(bad_if $asked)" CUDA "this torch has none" "containers/build.sh without --cpu (tools/setup.sh without --cpu)"
    elif [ -n "$driver" ] && less "${driver%%.*}" $least; then
        row "$(bad_if $asked)" CUDA "torch's CUDA $(value cuda) needs driver $least or newer, here is $driver" \
            "a newer driver, or an image with an older CUDA: --base with PyTorch's image of that CUDA"
    else
        row ok CUDA "torch's is $(value cuda) (driver $least or newer${driver:+; here $driver})"
    fi
    row ok NCCL "${answer:+$(value nccl)}$([ -n "$(value nccl)" ] || echo none, and one process or gloo needs none)"
    [ -z "$(value user)" ] || case $(value file) in
        "$(value user)"/*) row BAD user-site "torch comes from $(value user), not from where it should" \
            "export PYTHONNOUSERSITE=1" ;;
    esac
}

doctor_cdi() {
    local file path absent=""
    [ "$engine" = podman ] || return 0
    for file in /etc/cdi/* /var/run/cdi/*; do
        grep -qs 'nvidia.com/gpu' "$file" || continue
        while read -r path; do
            [ -e "$path" ] || absent=$path
        done <<<"$(sed -n 's/.*hostPath: *"\{0,1\}\(\/[^ "]*\).*/\1/p' "$file" | grep . || echo /)"
        if [ -n "$absent" ]; then
            row "$(bad_if [ "$ngpu" -gt 0 ])" CDI "$file is older than the driver: there is no $absent" \
                "nvidia-ctk cdi generate --output=$file"
        else
            row ok CDI "$file"
        fi
        return 0
    done
    if [ "$ngpu" -gt 0 ]; then
        row BAD CDI "no description of the GPUs in /etc/cdi, /var/run/cdi" "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
    else
        row ok CDI "none, and --ngpu 0 needs none"
    fi
}

doctor_disks() {
    local shm="" free tmp=${TMPDIR:-/tmp} used
    shm=$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 { print int($2 / 1024) }') || true
    if [ -n "${answer:-}" ] && [ -n "$(value shm)" ]; then shm=$(value shm); fi
    if [ -z "$shm" ] || [ "$shm" -lt 0 ]; then
        row ok /dev/shm "there is none (macOS needs none)"
    elif [ "$shm" -lt "$shm_wanted" ]; then
        row note /dev/shm "$shm MB: data loaders with several workers may die of it (bus error)" \
            "mount -o remount,size=8G /dev/shm   (as root)"
    else
        row ok /dev/shm "$shm MB"
    fi
    cache_place
    free=$(free_gb "$HOME")
    used=$(quota -s 2>/dev/null | awk 'NR > 2 { print $2 " of " $3; exit }') || true
    row "$(less "$free" 1 && echo note || echo ok)" home "$HOME: $free GB free${used:+, quota: $used used}; a run in a \
container leaves nothing there"
    free=$(free_gb "$cache")
    if less "$free" 2; then
        row note cache "$cache: $free GB free" "SPEECHLAB_CACHE=/a/larger/disk"
    else
        row ok cache "$cache: $free GB free"
    fi
    case $engine in
        apptainer | singularity)
            apptainer_places
            row ok "" "APPTAINER_CACHEDIR=$APPTAINER_CACHEDIR APPTAINER_TMPDIR=$APPTAINER_TMPDIR" ;;
    esac
    free=$(free_gb "$tmp")
    if less "$free" 0.1; then
        row BAD temporary "$tmp: $free GB free" "make room there, or TMPDIR=/a/larger/disk"
    else
        row ok temporary "$tmp: $free GB free"
    fi
    free=$(free_gb "$root")
    if less "$free" 2; then
        row note disk "$root: $free GB free" "make room: egs/*/exp/*/checkpoints, egs/*/data, downloads"
    else
        row ok disk "$root: $free GB free"
    fi
}

doctor_leaks() { # ~/.local and PYTHONPATH shadow an image's packages, or a .venv's
    local found="" folder name
    for folder in "$HOME"/.local/lib/python3*/site-packages; do
        for name in torch numpy lhotse; do [ ! -d "$folder/$name" ] || found="$found $folder/$name"; done
    done
    if [ -z "$found" ]; then
        row ok user-site "nothing in ~/.local shadows torch, numpy or lhotse"
    elif [ "$engine" != none ]; then
        row ok user-site "$found: not seen inside (PYTHONNOUSERSITE=1)"
    elif [ -n "${PYTHONNOUSERSITE:-}" ]; then
        row ok user-site "$found: not seen (PYTHONNOUSERSITE is set)"
    else
        row note user-site "$found may shadow what setup.sh installed" "export PYTHONNOUSERSITE=1"
    fi
    case $engine:${PYTHONPATH:-} in
        none: | *:"" | *:"$root") ;;
        none:*) row note PYTHONPATH "$PYTHONPATH comes before the packages" "unset PYTHONPATH" ;;
    esac
}

doctor_slurm() {
    local said
    if ! command -v sbatch >/dev/null; then
        row "$(if [ "$backend" = slurm ]; then echo BAD; else echo ok; fi)" Slurm "no client here (sbatch)" \
            "$([ "$backend" != slurm ] || echo "log in to a node that submits, or --backend local")"
    elif said=$(sinfo --noheader --format '%P %a %D nodes' 2>&1); then
        row ok Slurm "$(sbatch --version); partitions: $(printf '%s' "$said" | tr '\n' ';')"
    else
        row "$(if [ "$backend" = slurm ]; then echo BAD; else echo note; fi)" Slurm \
            "a client, but no controller: $(last_line "$said")" "ask whoever runs it, or --backend local"
    fi
}

doctor() {
    local answer=""
    printf '%-5s %-12s %s\n' "" "what" "found (engine $engine, image ${image:-none}, --ngpu $ngpu, backend $backend)"
    dry_run=false
    doctor_engines
    doctor_image
    doctor_gpu "$broken"
    doctor_cdi
    doctor_leaks
    doctor_disks
    doctor_slurm
    if [ "$broken" -gt 0 ]; then
        echo "$broken to mend" >&2
        return 1
    fi
    echo "nothing is broken"
}
