# shellcheck shell=bash disable=SC2154,SC2034  # options are set by their names; only run.sh uses some of the variables
# Every run.sh sources this file. It reads the options, notes the stages, and hands both to tools/stages.py, which decides
# what is to be done, and does it. This file works with bash 3.2. A run.sh has the form
#
#   source "$(dirname "$(readlink -f "$0" 2> /dev/null || echo "$0")")/../../tools/recipe.sh"   (readlink: run.sh may be
#                                      called by a link to it; macOS before 12.3 has no readlink -f, so there it may not)
#   option_corpus mini=hsk_gcin an4 folder:manifest.tsv   makes the options --corpus and --data_dir
#   option NAME DEFAULT "help"         makes an option --NAME; its value is $NAME after parse_options
#   option_path NAME DEFAULT "help"    the same for a path; a relative path starts at the folder where the user typed it
#   parse_options "$@"
#   choose_corpus                      sets $module, $raw, $whole and $name by --corpus and --data_dir
#   contract features tokens           sets $features and $tokens: the short names of those sections of $config
#   choose_text lm_text lm mini=zh_text   --lm_text is auto | none | FILE: sets $lm_text to the file, and extends $lm
#   stage N "Title" [--gpu] [--ddp] [--train] [--array] [--conf SECTION,...] [--in PATH...] --out PATH... -- command...
#   run_stages                         the last line
#
# A stage with --conf reads those sections of $config. It is done again when one of them has changed, and its command
# gets every --set that the user gave.
#
# A run.sh can use $recipe (its own folder, which is the working folder from here on), $repo, $downloads (absolute), and
# the values of the options that every recipe has: $nj $ngpu $exp $tag (with its "_") and so on. tools/stagelib has the
# rules.
set -euo pipefail
unset CDPATH

_caller=$(pwd -P)
case $0 in */*) _run=$0 ;; *) _run=./$0 ;; esac
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
_names=" " _flags=" force dry_run help " _paths=" "
_sets=() _plan=() _corpora=() _key="" _key_of=""

# Print a user's path as the recipe sees it. The path is looked for in the caller's folder, then in the recipe's folder:
# so both egs/x/conf/a.yaml (completed by the shell) and conf/a.yaml (from a README) work. A path inside the recipe
# becomes relative. A path that is to be made (--exp) always starts at the caller's folder.
user_path() { # NAME PATH
  local path=$2
  # shellcheck disable=SC2088  # `--data_dir=~/x` comes unexpanded
  case $path in "") return ;; "~/"*) path=$HOME/${path#"~/"} ;; esac
  case $path in
    /*) ;;
    *) path=${path#./}
       if [ "$1" = exp ] || [ -e "$_caller/$path" ] || [ ! -e "$recipe/$path" ]; then path=$_caller/$path; fi ;;
  esac
  while [ "${path%/}" != "$path" ] && [ "$path" != / ]; do path=${path%/}; done
  printf '%s' "${path#"$recipe/"}"
}

# A path without links, . and .. as far as it is there.
_physical() {
  local path=$1 rest=""
  case $path in /*) ;; *) path=$recipe/$path ;; esac
  while [ ! -d "$path" ]; do rest=/${path##*/}$rest path=${path%/*} path=${path:-/}; done
  path=$(cd "$path" && pwd -P)
  printf '%s' "${path%/}$rest"
}

# An experiment's folder is written to, and moved aside by --force: it must hold nothing but the experiment.
_check_exp() { # PATH
  local path name
  path=$(_physical "$1")
  [ ! -e "$path" ] || [ -d "$path" ] || fail "--exp $1 is a file: it must be an experiment's folder (exp/NAME)"
  case $recipe/ in
    "${path%/}"/*) fail "--exp $1 is ${path:-/}, and the recipe lies in it: give a folder of the experiment's own (exp/NAME)" ;;
  esac
  for name in conf local data figures; do
    case $path/ in
      "$(_physical "$name")"/*) fail "--exp $1: $name/ is the recipe's own: give a folder of the experiment's own (exp/NAME)" ;;
    esac
  done
  case $path in
    "$(_physical exp)") fail "--exp $1 is the folder of all experiments: give one of them (exp/NAME)" ;;
  esac
}

# Print one line and exit with 2: for a wrong use of the recipe.
fail() {
  echo "${_run##*/}: $*" >&2
  exit 2
}

_stages_py() {
  local python
  # stages.py needs only the standard library, so any Python will do. A Python whose place is known starts fastest.
  for python in "$repo/.venv/bin/python" "${VIRTUAL_ENV:-}/bin/python" "${CONDA_PREFIX:-}/bin/python" \
                "$(command -v python3 || true)" "$(command -v python || true)"; do
    if [ -x "$python" ]; then "${_exec[@]}" "$python" -S -E -X utf8 "$repo/tools/stages.py" "$@"; return; fi
  done
  fail "no python3 here: install Python 3.10-3.12"
}
_exec=(command)

# How many cores this process may use: those that it is bound to (taskset, a cluster, a container), and no more than its
# control groups' CPU time is worth. speechlab/cores.py is the same in Python.
_cores() { # [ROOT]: what stands for / in a test
  local root=${1:-} cores line path folder quota period
  # nproc would say what OMP_NUM_THREADS says; a Mac has none, and binds no process.
  cores=$(unset OMP_NUM_THREADS OMP_THREAD_LIMIT; nproc 2> /dev/null || getconf _NPROCESSORS_ONLN 2> /dev/null || echo 1)
  { while IFS= read -r line; do
      case $line in
        0::/*) folder=$root/sys/fs/cgroup path=${line#0::} ;;                        # version 2
        *:cpu:/* | *:cpu,*:/* | *,cpu:/*) folder=$root/sys/fs/cgroup/cpu path=${line##*:} ;; # version 1
        *) continue ;;
      esac
      path=${path%/}
      while :; do # a group has no more than those above it; in a container its own may be the topmost that is seen
        quota="" period=""
        if [ -r "$folder$path/cpu.max" ]; then read -r quota period < "$folder$path/cpu.max"
        elif [ -r "$folder$path/cpu.cfs_quota_us" ]; then
          read -r quota < "$folder$path/cpu.cfs_quota_us"; read -r period < "$folder$path/cpu.cfs_period_us"
        fi
        case $quota:$period in
          *[!0-9:]* | :* | *: | *:0) ;; # "max", -1 or nothing: no limit here
          *) quota=$(((quota + period - 1) / period)); [ "$quota" -ge "$cores" ] || cores=$quota ;;
        esac
        [ -n "$path" ] || break
        path=${path%/*}
      done
    done < "$root/proc/self/cgroup"; } 2> /dev/null || true
  [ "$cores" -gt 0 ] || cores=1
  printf '%s' "$cores"
}

option() {
  [[ $1 =~ ^[a-z_][a-z0-9_]*$ ]] || fail "option '$1' is not a name"
  _names="$_names$1 "
  printf -v "$1" %s "$2"
  _plan+=(option 3 "$1" "$2" "$3")
}

option_path() {
  option "$@"
  _paths="$_paths$1 "
}

# The corpora that a recipe takes; the first one is the default. Each is a word NAME[=MODULE][:[FILE][:WHAT]]:
#   an4                 speechlab/corpora/an4.py knows this corpus and can fetch it
#   mini=hsk_gcin       the same, but the module has another name: speechlab/corpora/hsk_gcin.py
#   kaldi:wav.scp       the user's own corpus in --data_dir: FILE must be in that folder, or in the folders in it
#   folder:manifest.tsv:"a table with the columns path and text"    FILE must be in that very folder; WHAT describes it
#   folder=image_folder::"class folders or manifest.tsv"            no FILE is asked for; WHAT describes the folder
option_corpus() { # WORD...
  local word name file published="" own="" where=""
  _corpora=("$@")
  for word in "$@"; do
    name=${word%%[=:]*}
    case $word in
      *:*) file=${word#*:} own=$own${own:+, }$name
           case $file in :*) file=${file#:} ;; *) file=${file%%:*} ;; esac
           where="$where${where:+, }${file:-a folder} ($name)" ;;
      *) published="$published${published:+ | }$name" ;;
    esac
  done
  option corpus "${1%%[=:]*}" "$published${own:+ | $own (with --data_dir)}"
  option_path data_dir "" "a corpus on disk: ${where:+$where, or }the published files"
}

# The options --symbols and --nlsyms of recipes with transcripts; choose_corpus makes $symbol_options of them.
option_symbols() {
  option symbols "" "non-speech symbols such as <NOISE> in transcripts: leave_out (the default) | keep"
  option_path nlsyms "" "a file with non-speech symbols of your own, one per line, beside the known ones"
}

parse_options() {
  local name value
  _plan+=(arguments $# "$@")
  while [ $# -gt 0 ]; do
    case $1 in
      -h) shift; set -- --help "$@"; continue ;;
      --?*) ;;
      *) fail "unexpected argument '$1': options are --name value (--help lists them)" ;;
    esac
    name=${1%%=*} name=${name#--} name=${name//-/_}
    case $_names in *" $name "*) [[ $name =~ ^[a-z0-9_]+$ ]] ;; *) false ;; esac \
      || { trap - EXIT; _exec=(exec); _stages_py unknown "${_run##*/}" "${1%%=*}" "$_names"; }
    case $_flags in *" $name "*) value=true ;; *) value= ;; esac
    case $1 in
      *=*) value=${1#*=} ;;
      *) if [ -z "$value" ]; then
           case ${2---} in --*) fail "$1 needs a value (--help tells which; --$name=VALUE if it begins with --)" ;; esac
           value=$2
           shift
         fi ;;
    esac
    shift
    case $name in
      stage|stop_stage|nj|ngpu)
        case $value in ""|*[!0-9]*) fail "--$name needs a number, not '$value'" ;; esac ;;
      force|dry_run|help)
        case $value in true|false) ;; *) fail "--$name takes no value (or =true, =false), not '$value'" ;; esac ;;
      set)
        case $value in ?*=*) _sets+=("$value") ;; *) fail "--set needs key=value (optim.lr=0.001, say), not '$value'" ;; esac ;;
      tag)
        case $value in */*) fail "--tag is a part of a folder's name and can't hold '/': '$value'" ;; esac
        value=${value:+_$value} ;;
    esac
    case $_paths in *" $name "*) value=$(user_path "$name" "$value") ;; esac
    printf -v "$name" %s "$value"
  done
  if [ -n "$exp" ]; then
    _check_exp "$exp"
    exp=$exp$tag
    [ -z "$tag" ] || _check_exp "$exp"
  fi
}

# Print the name of a file without folder and ending: `stem conf/a.yaml` prints a.
stem() {
  local name=${1##*/}
  printf '%s' "${name%.*}"
}

# Print a unique name for a user's folder: its own name and a hash of its place.
folder_name() {
  local path=$1 sum
  case $path in /*) ;; *) path=$recipe/$path ;; esac
  sum=$(printf '%s' "$path" | cksum)
  printf '%s-%04x' "${path##*/}" $((${sum%% *} & 65535))
}

# After parse_options: find out what --corpus and --data_dir mean. Sets
#   $module  the module of speechlab.corpora that knows the corpus (for a name that is not listed: the name itself)
#   $raw     the folder of the corpus
#   $whole   a file (or pattern): if it exists, the corpus is there
#   $name    the name of the corpus's folders in data/ and exp/; for a user's own corpus it has a hash of the place
choose_corpus() {
  local word="" head file what
  module=$corpus name=$corpus
  symbol_options=(${symbols:+--option "symbols=$symbols"} ${nlsyms:+--option "nlsyms=$nlsyms"})
  for word in ${_corpora[@]+"${_corpora[@]}"}; do
    head=${word%%:*}
    [ "${head%%=*}" != "$corpus" ] || { module=${head#*=}; break; }
    word=""
  done
  raw=${data_dir:-$downloads/$module}
  unset SPEECHLAB_DATA_DIR # for cmd.sh: a container is given what lies there
  case $data_dir in "") ;; /*) export SPEECHLAB_DATA_DIR=$data_dir ;; *) export SPEECHLAB_DATA_DIR=$recipe/$data_dir ;; esac
  whole=${data_dir:-$raw/.complete}
  case $word in *:*) ;; *) return 0 ;; esac
  [ -n "$data_dir" ] || [ "$help" = true ] || fail "--corpus $corpus needs --data_dir DIR (see README.md)"
  file=${word#*:}
  case $file in *:*) what=${file#*:} ;; *) what="" ;; esac
  file=${file%%:*} name=$(folder_name "$raw")
  whole=$raw${file:+/$file}
  if [ -n "$file" ] && [ ! -f "$whole" ]; then
    [ -z "$what" ] || [ "$help" = true ] || fail "no $file in $raw: it must be $what (see README.md)"
    [ -n "$what" ] || whole="$raw/*/$file"
  fi
}

# After contract: find out what an option for more text (auto | none | FILE) means. $OPTION becomes the file or "". The
# name $FOLDER, of the folder of what is made from the text, gets an addition for each text. CORPUS=MODULE says that for
# this corpus auto means the text that MODULE of speechlab.corpora fetches; for all other corpora auto means none.
choose_text() { # OPTION FOLDER CORPUS=MODULE...
  local _given=${!1} _text="" _addition="" _word  # with "_": OPTION may be called text
  case $_given in
    none) ;;
    auto)
      for _word in ${3+"${@:3}"}; do
        if [ "${_word%%=*}" = "$corpus" ]; then _text=$downloads/${_word#*=}/text.txt _addition=-text; fi
      done ;;
    *)
      _text=$(user_path "$1" "$_given")
      _addition=-$(folder_name "$_text")
      [ -f "$_text" ] || [ "$help" = true ] || fail "--$1 $_text: no such file" ;;
  esac
  printf -v "$1" %s "$_text"
  printf -v "$2" %s "${!2}$_addition"
}

# Set $_key to a hash of all that the resolved config depends on: the YAML, --set, and all code that can define a
# default, in the package and in the recipe's own folder local/, at any depth. Resolving a config needs a Python with
# packages and can take seconds, so its result is kept under this key in data/.cache. The hash takes much of the time of
# a run that has nothing to do, so it is made only once.
_config_key() {
  local sum=sha256sum
  [ "$_key_of" != "$config" ] || return 0
  command -v sha256sum > /dev/null || sum="shasum -a 256"
  # Sorted, because find's order depends on the file system. -L, because local/ may be a link. Relative paths, because
  # the repository may be moved.
  _key=$({ printf '%s\n' "$config" ${_sets[@]+"${_sets[@]}"}
           cat "$config" || true
           cd "$repo"
           find -L speechlab "${recipe#"$repo/"}/local" -name '*.py' -exec cksum {} + | LC_ALL=C sort || true
         } 2> /dev/null | $sum)
  _key=${_key:0:20} _key_of=$config
}

# contract SECTION...: set $SECTION to the short name of that section of $config, such as fbank80-3f2a.
contract() {
  local name line cache
  for name in "$@"; do printf -v "$name" '<%s>' "$name"; done # what --help shows
  [ "$help" != true ] && [ -z "$sweep" ] || return 0
  : "${config:?contract needs an option named config}"
  _config_key
  cache=data/.cache/config-$_key.names
  if [ ! -f "$cache" ]; then
    _stages_py resolve "${_plan[@]}" value 2 config "$config" value 2 key "$_key" \
      sets ${#_sets[@]} ${_sets[@]+"${_sets[@]}"} value 2 dry_run "$dry_run" >&2 || exit $?
  fi
  [ -f "$cache" ] || return 0 # --dry_run where no Python is set up yet
  while IFS= read -r line; do
    for name in "$@"; do
      case $line in "$name="*) printf -v "$name" %s "${line#*=}" ;; esac
    done
  done < "$cache"
  for name in "$@"; do
    [ "${!name}" != "<$name>" ] || fail "contract: $config has no section '$name'"
  done
}

# stage N "Title" flags -- command: only note the stage; tools/stagelib/plan.py reads the flags.
stage() {
  _plan+=(stage $# "$@")
}

run_stages() {
  local name
  trap - EXIT
  [ -z "${config:-}" ] || [ ! -f "$config" ] || [ "$help" = true ] || _config_key
  for name in stage stop_stage nj ngpu exp sweep force dry_run help; do _plan+=(value 2 "$name" "${!name}"); done
  _plan+=(value 2 config "${config:-}" value 2 key "$_key" sets ${#_sets[@]} ${_sets[@]+"${_sets[@]}"})
  _exec=(exec)
  _stages_py run "${_plan[@]}"
}

# Relative paths in the user's environment variables start at the caller's folder, too.
_absolute() {
  case $1 in */*) case $1 in /*) printf '%s' "$1" ;; *) printf '%s' "$_caller/$1" ;; esac ;; *) printf '%s' "$1" ;; esac
}
downloads=${SPEECHLAB_DOWNLOADS:-$repo/downloads}
case $downloads in /*) ;; *) downloads=$_caller/$downloads ;; esac
export SPEECHLAB_DOWNLOADS=$downloads PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}"
[ -z "${SPEECHLAB_PYTHON:-}" ] || SPEECHLAB_PYTHON=$(_absolute "$SPEECHLAB_PYTHON")
case ${SPEECHLAB_CACHE:-/} in /*) ;; *) SPEECHLAB_CACHE=$_caller/$SPEECHLAB_CACHE ;; esac
case ${SPEECHLAB_SLURM_CONF:-} in "" | /*) ;; *) SPEECHLAB_SLURM_CONF=$_caller/$SPEECHLAB_SLURM_CONF ;; esac
if [ -e "${SPEECHLAB_IMAGE:-}" ]; then case $SPEECHLAB_IMAGE in /*) ;; *) SPEECHLAB_IMAGE=$_caller/$SPEECHLAB_IMAGE ;; esac; fi
# The recipe is the folder of run.sh. A link to run.sh from outside leads to the real folder; but a link that is itself
# in a recipe's folder belongs to that recipe.
_script=$0
[ "$(dirname "$0")/../../tools/recipe.sh" -ef "${BASH_SOURCE[0]}" ] || _script=$(readlink -f "$0" 2> /dev/null || printf '%s' "$0")
cd "$(dirname "$_script")"
recipe=$(pwd -P)
_plan=(value 2 recipe "$recipe" value 2 repo "$repo" value 2 run "$_run" value 2 script "${_script##*/}"
       value 2 downloads "$downloads" value 2 caller "$_caller")

option      stage ""     "the first stage to do; this stage and all later ones are done again"
option      stop_stage "" "the last stage to do"
option      ngpu 0       "how many GPUs to use"
option      nj "${SLURM_CPUS_PER_TASK:-$(_cores)}" "how many processes to use (default: one per core that they may use)"
option_path exp ""       "the experiment's folder (default: exp/..., with a name made from the options)"
option      tag ""       "an addition to the experiment's name"
option      set ""       "key=value replaces a value of the config; may be given several times"
option_path sweep ""     "a YAML file of experiments to run one after the other"
option      force false  "train afresh; the old experiment is moved aside"
option      dry_run false "show what would be done, and do nothing"
option      help false   "show this"
_plan+=(own 0)
trap '_status=$?; if [ $_status = 0 ]; then echo "${_run##*/}: it ended without run_stages, which must be its last line" >&2; exit 2; fi' EXIT
