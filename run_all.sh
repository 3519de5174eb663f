#!/usr/bin/env bash
# Everything from one command: environment, then a study (a profile) or the tests. See ./run_all.sh --help.
set -euo pipefail

HERE=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
PROFILES=$HERE/Code/workflow/profiles

usage() {
    cat <<END
usage: ./run_all.sh [PROFILE] [options] [Snakemake options]
       ./run_all.sh fetch PROFILE [options]
       ./run_all.sh test [options] [pytest options]
       ./run_all.sh lab [options] [JupyterLab options]
       ./run_all.sh bench [COMPARISON ...] [options] [--rounds N] [--device D] [--quick] [--save]

Runs every experiment of a profile that is missing or stale, then makes the tables, the figures and report.html in
results/PROFILE. Started again after an interruption, it goes on where it was. PROFILE is a name or the path of a YAML
file; without it: quick. "fetch" gets all data and weights of a profile, after which its jobs need no network.
"lab" opens the notebooks in JupyterLab, with this environment's kernel.
"bench" times what is fast beside what it replaces and prints the ratios next to those of results/bench.csv, which
--save writes; let nothing else run meanwhile. --quick only tries whether all of it runs.

profiles: $(profiles)

options:
  --no-venv       use the active Python environment instead of .venv beside this script
  --no-install    do not install or update anything
  --results DIR   put the results in DIR (relative to this script) instead of results/PROFILE
  --threads N     cores for each run instead of all (on a cluster: instead of 8)
  --accept [RUN]  results that are there, all or those of runs called RUN, stand although code has changed since
  --plan          only say what the profile costs: runs, GPU-hours, memory, downloads
  --rehearse      run its smallest form, on generated images, in results/rehearsal/PROFILE: what would break, breaks now
  -n, --dry-run   only say what would run
  -h, --help      show this

Any other option goes to Snakemake, such as --cores 4, --forcerun RUN or --executor slurm (Code/workflow/README.md has
the whole command), or, after "test" and "lab", to pytest and JupyterLab.
DATA_ROOT names the folder that holds the data sets (default: ~/.cache/token-reduction).
END
}

profiles() {
    local path names=()
    for path in "$PROFILES"/*.yaml; do names+=("$(basename "$path" .yaml)"); done
    printf '%s, ' "${names[@]}" | sed 's/, $//'
}

fail() {
    echo "error: $*" >&2
    exit 2
}

usable() { # PYTHON: at least 3.10
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

find_python() {
    local python
    for python in python3 python3.13 python3.12 python3.11 python3.10; do
        if usable "$python" && "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    fail "no Python >= 3.10 with the modules venv and ensurepip found (Debian and Ubuntu: apt install python3-venv)"
}

make_venv() {
    usable "$HERE/.venv/bin/python" && return
    local python
    python=$(find_python)
    echo "creating .venv with $("$python" --version)"
    "$python" -m venv --clear "$HERE/.venv"
}

install_packages() { # nothing to do unless the requirements changed since the last time
    local stamp wanted
    stamp=$("$PYTHON" -c 'import sys; print(sys.prefix)')/.token-reduction-installed
    wanted=$(cd "$HERE" && pwd && cksum requirements.txt pyproject.toml)
    [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && return
    echo "installing requirements.txt (a first time takes some minutes and 6 GB)"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$HERE/requirements.txt"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --editable "$HERE"
    echo "$wanted" >"$stamp"
}

run_tests() { # pytest options; without any everything runs, on two cores or more in several processes
    local pytest=("$PYTHON" -m pytest --nbval-lax --nbval-current-env)
    if [[ $# -gt 0 || $(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) -lt 2 ]]; then
        exec "${pytest[@]}" "$@"
    fi
    # files start in the order that tests/conftest.py gives them
    OMP_NUM_THREADS=1 exec "${pytest[@]}" --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
}

open_lab() { # JupyterLab options
    if ! "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("jupyterlab"))'; then
        [[ $INSTALL == yes ]] || fail "JupyterLab is not installed in $PYTHON; run without --no-install"
        echo "installing JupyterLab"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -c requirements.txt --editable "$HERE[lab]"
    fi
    local kernel=$HERE/.snakemake/jupyter # comes before a kernel of the same name, of another Python, in the home folder
    "$PYTHON" -m ipykernel install --prefix "$kernel" >/dev/null 2>&1
    export JUPYTER_PATH=$kernel/share/jupyter${JUPYTER_PATH:+:$JUPYTER_PATH}
    # the repository is the root, so that saving a notebook also writes its text under Code
    exec "$PYTHON" -m jupyterlab --ServerApp.root_dir="$HERE" --LabApp.default_url=/lab/tree/notebooks "$@"
}

VENV=yes INSTALL=yes
rest=()
for argument in "$@"; do
    case $argument in
        --no-venv) VENV=no ;;
        --no-install) INSTALL=no ;;
        -h | --help) usage && exit 0 ;;
        *) rest+=("$argument") ;;
    esac
done
set -- "${rest[@]+"${rest[@]}"}"

target=quick script=launch.py
if [[ $# -gt 0 && $1 == fetch ]]; then
    script=fetch.py
    shift
fi
if [[ $# -gt 0 && $1 != -* ]]; then
    target=$1
    shift
fi
case $target in
    test | bench | lab) [[ $script == launch.py ]] || fail "unknown profile '$target'; allowed: $(profiles)" ;;
    *.yaml | *.yml)
        [[ -f $target ]] || fail "there is no profile '$target'"
        target=$(cd -- "$(dirname -- "$target")" && pwd -P)/$(basename -- "$target")
        ;;
    *) [[ -f $PROFILES/$target.yaml ]] || fail "unknown profile '$target'; allowed: $(profiles), the path of a YAML file (or fetch, test, bench, lab)" ;;
esac

if [[ $VENV == yes ]]; then
    [[ $INSTALL == no ]] || make_venv
    PYTHON=$HERE/.venv/bin/python
else
    PYTHON=$(command -v python || command -v python3 || true)
fi
usable "${PYTHON:-none}" || fail "no Python >= 3.10 in ${PYTHON:-the active environment}"
if [[ $INSTALL == yes ]]; then
    install_packages
elif ! "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("common") and u.find_spec("snakemake")))'; then
    fail "the packages are not installed in $PYTHON; run without --no-install"
fi

cd "$HERE"
if [[ $target == test ]]; then
    run_tests "$@"
    exit
fi
[[ $target != lab ]] || open_lab "$@"
[[ $target != bench ]] || exec "$PYTHON" Code/bench/bench.py "$@"
exec "$PYTHON" "Code/workflow/$script" "$target" "$@"
