# shellcheck shell=bash
# Functions shared by the sbatch files, which source this file after setting PROJECT.
#
# Environment variables and their defaults:
#   RUN_ROOT       folder of outputs/, results/ and debug_data/        (quick checks: a folder of the job, for example
#                  blockdiff_quick_ar_<jobid>, in the home folder, or, if that is read-only, in the folder of the
#                  sbatch call; other jobs: the folder of the sbatch call)
#   DATASET_ROOT   CALVIN data with training/ and validation/           (the embedded frames, dummy_data/calvin)
#   ENV_MODE       venv: VENV, created if missing; system: PYTHON; auto: VENV if it exists, else PYTHON if it has
#                  the packages, else a new VENV                      (auto)
#   VENV           a virtual environment                                (.venv of the project)
#   PYTHON         the interpreter of ENV_MODE=system                   (python3)
#   PIP_USER       ENV_MODE=system: install missing packages: 1 into the home folder (pip --user), 0 into PYTHON's own
#                  environment; empty: install nothing                  (empty)
#   INSTRUCTION, MAX_FRAMES   of the small training split               (open the drawer, 256)
#   MAX_SAMPLES    samples of the offline evaluation, one per annotation; 0: all   (64)
#   PRETRAINED_MODEL_PATH, LLM_MODEL_PATH, VQ_MODEL_PATH, CLIP_MODEL_PATH   networks; the first replaces the
#                  embedded models by the full-size recipe              (none: the embedded models)
#   OVERRIDES      further section.key=value, separated by spaces       (none)

say() { echo "[$(date '+%F %T')] $*"; }

die() {
    echo "error: $*" >&2
    exit 2
}

# All settings that the sbatch files read from the environment.
SETTINGS="RUN_ROOT DATASET_ROOT ENV_MODE VENV PYTHON PIP_USER INSTRUCTION MAX_FRAMES MAX_SAMPLES TRAIN_STEPS OVERRIDES \
    PRETRAINED_MODEL_PATH LLM_MODEL_PATH VQ_MODEL_PATH CLIP_MODEL_PATH PROJECT INSTALL_DEEPSPEED DEEPSPEED_SPEC \
    NUM_PROCESSES ACCELERATE_CONFIG PROCESSES_PER_NODE MASTER_ADDR MASTER_PORT MODEL_CFG MODEL_YAML CALVIN_DATA_ROOT \
    NUM_SEQUENCES LOG_DIR"

# Compare the names in the environment with the settings by their longest common subsequence. A near miss (other case, a
# few letters too many or too few, one other letter, two exchanged) is an error unless the similar setting is set too.
# Less similar names are reported and ignored. Names set by other software are no near misses: CALVIN's installation
# page exports CALVIN_ROOT, some clusters export PROJECTS.
check_names() {
    local name setting near
    while read -r name setting near; do
        if ((near)) && [[ -z ${!setting+set} ]]; then
            die "$name is not a setting of this job: did you mean $setting? (unset $name, or set $setting," \
                "empty for its default)"
        fi
        say "notice: $name is not a setting of this job and has no effect; did you mean $setting?" >&2
    done < <(compgen -e | grep -xE '[A-Za-z0-9_]+' | grep -vE '^((SLURM|SBATCH|SRUN|PIP|LMOD|CONDA)_|PYTHON.|(ENV|CALVIN_ROOT|PROJECTS)$)' |
        awk -v settings="$SETTINGS" '
        function common(a, b, i, j, n, row, last, kept) { # length of the longest common subsequence
            n = length(b)
            for (j = 0; j <= n; j++) row[j] = 0
            for (i = 1; i <= length(a); i++) {
                last = 0
                for (j = 1; j <= n; j++) {
                    kept = row[j]
                    if (substr(a, i, 1) == substr(b, j, 1)) row[j] = last + 1
                    else if (row[j - 1] > row[j]) row[j] = row[j - 1]
                    last = kept
                }
            }
            return row[n]
        }
        BEGIN { count = split(settings, known); for (k in known) is_known[known[k]] }
        !($0 in is_known) {
            best = 0
            for (k = 1; k <= count; k++) {
                same = common(toupper($0), known[k])
                ratio = 2 * same / (length($0) + length(known[k]))
                if (ratio > best) {
                    best = ratio
                    nearest = known[k]
                    contained = same == length($0) || same == length(nearest)
                }
            }
            if (best >= 0.72) print $0, nearest, (best >= 0.88 || (best >= 0.8 && contained))
        }')
}

# argument NAME: the default RUN_ROOT of a job with its own folder. A requeued job has the same number.
job_folder() {
    local base=${HOME:-}
    [[ -n $base && -d $base && -w $base ]] || base=${SLURM_SUBMIT_DIR:-$PWD}
    echo "$base/$1_${SLURM_JOB_ID:-$$}"
}

# argument [DEFAULT]: sets the folders of the run (DEFAULT for RUN_ROOT) and changes to the project.
# Relative paths in the environment start at the folder of the sbatch call, the working directory of a job.
enter_project() {
    local name part
    for name in PRETRAINED_MODEL_PATH LLM_MODEL_PATH VQ_MODEL_PATH CLIP_MODEL_PATH ACCELERATE_CONFIG MODEL_YAML \
        CALVIN_DATA_ROOT; do
        # Other values may be a hub id, or a file of the project.
        [[ -z ${!name:-} || ! -e ${!name} ]] || export "$name=$(realpath "${!name}")"
    done
    [[ -z ${LOG_DIR:-} ]] || LOG_DIR=$(realpath -m "$LOG_DIR")
    RUN_ROOT=$(realpath -m "${RUN_ROOT:-${1:-${SLURM_SUBMIT_DIR:-$PWD}}}")
    DATASET_ROOT=$(realpath -m "${DATASET_ROOT:-$PROJECT/dummy_data/calvin}")
    VENV=$(realpath -m "${VENV:-$PROJECT/.venv}")
    mkdir -p "$RUN_ROOT/outputs" "$RUN_ROOT/results" || die "RUN_ROOT=$RUN_ROOT is not writable"
    for part in training validation; do
        [[ -d $DATASET_ROOT/$part ]] || die "DATASET_ROOT=$DATASET_ROOT has no folder $part"
    done
    export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
    # Since Slurm 22.05 srun does not inherit the CPUs per task of the job: every task would have one.
    [[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
    # Run the submitted project, even if another checkout is installed in the environment.
    export PYTHONPATH=$PROJECT${PYTHONPATH:+:$PYTHONPATH}
    cd "$PROJECT" || die "PROJECT=$PROJECT is not accessible"
    say "job ${SLURM_JOB_ID:-(none)} on ${SLURM_JOB_NODELIST:-$(hostname -s)}, project $PROJECT, results under $RUN_ROOT"
}

# Print the dependencies that the interpreter $1 lacks.
missing_packages() {
    "$1" - <<'PYTHON'
from importlib.util import find_spec

needed = ["torch", "transformers", "accelerate", "omegaconf", "hydra", "yaml", "PIL", "tensorboard", "tqdm"]
print(*[name for name in needed if find_spec(name) is None])
PYTHON
}

# arguments COMMAND...: run it under a lock of this user, because jobs share the installed packages.
one_at_a_time() {
    local cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/blockdiff-vla
    mkdir -p "$cache"
    (
        flock 9 || say "notice: no lock on $cache/install.lock; another job may install at the same time"
        "$@"
    ) 9>"$cache/install.lock"
}

make_environment() {
    local system=$1
    # Another job may have created it in the meantime.
    if [[ ! -x $PYTHON ]] || [[ -n $(missing_packages "$PYTHON") ]]; then
        say "creating the environment $VENV"
        make venv VENV="$VENV" PYTHON="$system"
    fi
}

# Set PYTHON to an interpreter that can run the project.
choose_python() {
    local system=${PYTHON:-python3} mode=${ENV_MODE:-auto} lacks packages
    case $mode in
    auto)
        if [[ -x $VENV/bin/python ]]; then
            mode=venv
        elif command -v "$system" >/dev/null && [[ -z $(missing_packages "$system") ]]; then
            mode=system
        else
            mode=venv
        fi
        ;;
    venv | system) ;;
    *) die "ENV_MODE=$mode: allowed are auto, venv, system" ;;
    esac
    if [[ $mode == system ]]; then
        command -v "$system" >/dev/null || die "PYTHON=$system: no such interpreter"
        PYTHON=$(command -v "$system")
        lacks=$(missing_packages "$PYTHON")
        if [[ -n $lacks ]]; then
            [[ -n ${PIP_USER:-} ]] || die "$PYTHON lacks: $lacks (PIP_USER=1 installs them; or set ENV_MODE=venv)"
            # An editable install writes into the project. A read-only project is found through PYTHONPATH.
            packages=(--editable "$PROJECT[serve]")
            [[ -w $PROJECT ]] || packages=(-r requirements_minimal.txt)
            one_at_a_time install_packages "${packages[@]}"
        fi
    else
        PYTHON=$VENV/bin/python
        if [[ ! -x $PYTHON ]] || [[ -n $(missing_packages "$PYTHON") ]]; then
            one_at_a_time make_environment "$system"
        fi
    fi
    export PYTHON
    say "python: $PYTHON ($("$PYTHON" -c 'import torch; print("torch", torch.__version__, "- CUDA devices:", torch.cuda.device_count())'))"
}

# Run pip install into the environment of PYTHON, or with PIP_USER=1 into the home folder.
install_packages() {
    local user=()
    [[ ${PIP_USER:-0} != 1 ]] || user=(--user)
    # pip reads PIP_USER itself, and refuses --user in a virtual environment.
    env -u PIP_USER "$PYTHON" -m pip install --disable-pip-version-check --quiet "${user[@]}" "$@"
}

# Write a small processed split of the first frames of DATASET_ROOT/training to TRAIN_DATA.
prepare_data() {
    TRAIN_DATA=$RUN_ROOT/debug_data/calvin_debug_processed_training
    "$PYTHON" scripts/prepare_calvin_debug_processed.py --source-split-dir "$DATASET_ROOT/training" \
        --output-dir "$TRAIN_DATA" --instruction "${INSTRUCTION:-open the drawer}" --max-frames "${MAX_FRAMES:-256}"
}

# arguments OBJECTIVE OUTPUT_DIR STEPS -> TRAIN, the script of the objective with its arguments
training_command() {
    local objective=$1 output_dir=$2 steps=$3 extra=()
    case $objective in
    ar) TRAIN=(train_upvla.py) name=arvla ;;
    mdm) TRAIN=(train_mdm_vla.py) name=mdmvla ;;
    bd) TRAIN=(train_blockdiff_vla.py) name=bdvla ;;
    *) die "$objective: allowed are ar, mdm, bd" ;;
    esac
    if [[ -n ${PRETRAINED_MODEL_PATH:-} ]]; then
        TRAIN+=("config=$PROJECT/config/${name}_action_tuning.yaml" dataset.und_type=null
            "model.showo.pretrained_model_path=$PRETRAINED_MODEL_PATH" lr_scheduler.params.warmup_steps=0
            experiment.eval_every=0 experiment.generate_every=0 experiment.log_every=1
            experiment.resume_from_checkpoint=false)
    else
        TRAIN+=("config=$PROJECT/config/debug_${name}_1step.yaml")
    fi
    [[ -z ${LLM_MODEL_PATH:-} ]] || TRAIN+=("model.showo.llm_model_path=$LLM_MODEL_PATH")
    [[ -z ${VQ_MODEL_PATH:-} ]] || TRAIN+=("model.vq_model.vq_model_name=$VQ_MODEL_PATH")
    [[ -z ${CLIP_MODEL_PATH:-} ]] || TRAIN+=("model.showo.clip_model_path=$CLIP_MODEL_PATH")
    read -ra extra <<<"${OVERRIDES:-}"
    TRAIN+=("dataset.params.train_pre_shards_path_or_url=$TRAIN_DATA" "experiment.output_dir=$output_dir"
        "experiment.save_every=$steps" "training.max_train_steps=$steps")
    # A requeued job continues in its folder.
    [[ ${SLURM_RESTART_COUNT:-0} == 0 ]] || TRAIN+=(experiment.resume_from_checkpoint=latest)
    TRAIN+=("${extra[@]}")
}

# argument OUTPUT_DIR: write OUTPUT_DIR/model.yaml, the model yaml of a run
write_model_yaml() {
    "$PYTHON" - "$1" <<'PYTHON'
import sys
from pathlib import Path

from omegaconf import OmegaConf

run = Path(sys.argv[1])
settings = OmegaConf.load(run / "config.yaml")
OmegaConf.update(settings, "model.showo.tuned_model_path", str(run), force_add=True)
OmegaConf.save(settings, run / "model.yaml")
PYTHON
}

# arguments OUTPUT_DIR RESULT: evaluate the model of a run offline on DATASET_ROOT/validation
evaluate_offline() {
    local output_dir=$1 result=$2
    write_model_yaml "$output_dir"
    "$PYTHON" scripts/eval_upvla_offline_actions.py --dataset-root "$DATASET_ROOT" --split validation \
        --model-config "$output_dir/model.yaml" --device auto --start-only --max-samples "${MAX_SAMPLES:-64}" \
        --output-json "$result"
}

# arguments RESULT...: write results/summary.md with one row each
summarize() {
    "$PYTHON" scripts/summarize_offline_eval_json.py --inputs "$@" --output "$RUN_ROOT/results/summary.md"
    say "done: $RUN_ROOT/results/summary.md"
}

check_names
