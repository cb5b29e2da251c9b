#!/usr/bin/env bash
# Install CALVIN's simulator for `environment=calvin`; see --help and docs/calvin.md.
set -euo pipefail

CALVIN_URL=https://github.com/mees/calvin
CALVIN_COMMIT=fa03f01 # for its instructions only
ENV_URL=https://github.com/mees/calvin_env
ENV_COMMIT=797142c588c21e76717268b7b430958dbd13bf48

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=${XDG_DATA_HOME:-$HOME/.local/share}/blockdiff-vla/calvin
source_dir=
python=
data=
packages=1

help() {
    cat <<HELP
usage: bash scripts/install_calvin_env.sh [--dir DIR | --source DIR] [--python PYTHON] [--data DIR] [--skip-packages]

Installs the simulator of CALVIN (calvin_env ${ENV_COMMIT:0:7}, pybullet 3.2.7) into a Python environment without
changing the version of an installed package. Can be run again.

  --dir DIR         folder of the CALVIN clone (default: $dir)
  --source DIR      use this checkout of CALVIN, or of calvin_env alone, without cloning
  --python PYTHON   environment of this interpreter (default: .venv/bin/python of this project, else python3)
  --data DIR        CALVIN's task_ABC_D, task_D_D, ...: build its environment and take a step at the end
  --skip-packages   install no Python packages (already installed, or no network)

Python 3.10 and 3.11 get pybullet as a wheel. For 3.12 and later pip compiles it, which needs a C++ compiler and
Python's headers (Debian: apt install g++ python3-dev) and takes several minutes.
To remove it: delete blockdiff_calvin_env.pth in site-packages, and DIR.
HELP
}

fail() {
    echo "install_calvin_env: $1" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
    -h | --help)
        help
        exit 0
        ;;
    --dir | --source | --python | --data)
        [ $# -gt 1 ] || fail "$1 needs a value"
        case $1 in
        --dir) dir=$2 ;;
        --source) source_dir=$2 ;;
        --python) python=$2 ;;
        --data) data=$2 ;;
        esac
        shift
        ;;
    --skip-packages) packages= ;;
    *) fail "$1: no such option; --help lists them" ;;
    esac
    shift
done

if [ -z "$python" ]; then
    python=$repository/.venv/bin/python
    [ -x "$python" ] || python=python3
fi
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "--python $python: does not run"
case $version in
3.10 | 3.11 | 3.12 | 3.13) ;;
*) fail "--python $python is Python $version; this project supports 3.10 to 3.13" ;;
esac

# 1. The code.
clone() { # url, commit, folder
    if [ ! -e "$3/.git" ]; then
        command -v git >/dev/null || fail "git is not installed; download $1 and pass --source"
        git clone --filter=blob:none --no-checkout "$1" "$3" ||
            fail "cannot clone $1; without access to GitHub, copy a checkout here and pass --source"
    fi
    git -C "$3" checkout --quiet "$2" || fail "$3 has no commit $2 (or changed files): delete it, or pass --source"
}
if [ -z "$source_dir" ]; then
    clone "$CALVIN_URL" "$CALVIN_COMMIT" "$dir"
    clone "$ENV_URL" "$ENV_COMMIT" "$dir/calvin_env"
    source_dir=$dir
fi
[ -d "$source_dir" ] || fail "--source $source_dir: no such folder"
source_dir=$(cd "$source_dir" && pwd)
if [ -f "$source_dir/calvin_env/envs/play_table_env.py" ]; then
    package=$source_dir # a checkout of calvin_env
elif [ -f "$source_dir/calvin_env/calvin_env/envs/play_table_env.py" ]; then
    package=$source_dir/calvin_env # a checkout of CALVIN with its submodule
else
    fail "--source $source_dir: neither calvin_env/envs/play_table_env.py nor calvin_env/calvin_env/envs/play_table_env.py exists"
fi

# 2. The required packages. Installed packages keep their versions.
if [ -n "$packages" ]; then
    "$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip; pass --python, or --skip-packages"
    case $version in
    3.12 | 3.13)
        if ! "$python" -c 'import pybullet' 2>/dev/null; then
            command -v c++ >/dev/null || command -v g++ >/dev/null ||
                fail "pybullet has no wheel for Python $version and there is no C++ compiler to build it: use Python 3.11 (python3.11 -m venv .venv), or install g++ and Python's headers"
            echo "pybullet has no wheel for Python $version: compiling it takes several minutes"
        fi
        ;;
    esac
    held=$(mktemp)
    trap 'rm -f "$held"' EXIT
    "$python" -m pip list --format=freeze 2>/dev/null | grep -E '^[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*$' >"$held" || true
    "$python" -m pip install --constraint "$held" -r "$repository/requirements-calvin.txt" ||
        fail "pip could not install requirements-calvin.txt with the installed versions (see its output above)"
fi

# 3. Add calvin_env to Python's path. setup.py is not run: it would install gym, numba and other versions.
site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
[ -w "$site" ] || fail "$site is not writable: create your own environment (python3 -m venv .venv)"
echo "$package" >"$site/blockdiff_calvin_env.pth.tmp"
mv "$site/blockdiff_calvin_env.pth.tmp" "$site/blockdiff_calvin_env.pth"

# 4. Check the installation.
cd "$repository"
if [ -n "$data" ]; then
    "$python" -m policy_rollout.calvin "$data" || fail "calvin_env is installed but does not work (see the line above)"
else
    "$python" -m policy_rollout.calvin || fail "calvin_env is installed but does not work (see the line above)"
fi
echo "installed $package; evaluate with: python -m policy_rollout.calvin_evaluate_upvla environment=calvin dataset_path=${data:-/path/to/task_ABC_D} model_config=..."
