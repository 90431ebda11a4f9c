#!/usr/bin/env bash
# Every run behind results/README.md, in order of priority, one after the other. A run that
# experiment.json has is skipped, one that was stopped goes on. As stored, it has all: move it away.
#
#     bash results/experiment.sh DATA [FLAG ...]    DATA: a folder with input/, target/, evaluation/
#
# Started once more at the same time, it takes the runs that the first one has not begun.
# OMP_NUM_THREADS=1 gives each one core. Flags go to train.py, such as --bf16.
set -eu
data=$(realpath "${1:?give the folder that holds input/, target/ and evaluation/}")
cd "$(dirname "$0")/.."
shift
extra="$*"
record="python results/experiment.py"
mkdir -p runs
exec 8> runs/layout.lock
flock 8
$record layout "$data"  # fourth_slices, choose_slices and report_slices
flock -u 8

train() {  # NAME FLAGS...: trains runs/NAME, or goes on with it, unless it is finished
    local name=$1
    shift
    if [ -e "runs/$name/finished" ]; then return; fi
    if compgen -G "runs/$name/checkpoint*.pt" > /dev/null; then
        python train.py --resume "runs/$name"
    else python train.py --data fourth_slices --out "runs/$name" "$@" $extra; fi
    touch "runs/$name/finished"
}

both() { echo --method "$1" --lam "$2" --seed "$3"; }

lead() {  # METHOD LAM SEED: the critic learns first
    train "lead_$1_$2_$3" $(both "$1" "$2" "$3") --size 64 --batch 4 --critic-steps 10 \
        --lr-g 1e-3 --lr-c 1e-3 --updates 150
}

small() {  # METHOD LAM SEED UPDATES: then G moves more often
    lead "$1" "$2" "$3"
    train "small$4_$1_$2_$3" $(both "$1" "$2" "$3") --init "runs/lead_$1_$2_$3" --size 64 --batch 4 \
        --critic-steps 2 --lr-g 1e-3 --lr-c 1e-3 --decay 0.5 --updates "$4"
}

large() {  # METHOD LAM SEED LARGE_LAM: then both see more pixels
    small "$1" "$2" "$3" 1050
    train "large_$1_$2_$3" $(both "$1" "$4" "$3") --init "runs/small1050_$1_$2_$3" --size 128 \
        --batch 4 --critic-steps 5 --lr-g 2e-4 --lr-c 5e-4 --decay 0.7 --updates 200
}

judge() {  # PAIRS RUN ROW: scores runs/RUN on the pairs that choose or report, as a row of the json
    if $record has "$3"; then return; fi
    python evaluate.py "runs/$2" --data "$1_slices" --out "runs/$2/$1"
    flock runs/json.lock $record add "$3" "$2" "$1"
}

once() {  # ROW COMMAND...: unless the json has the row, or another process works at it
    local row=$1
    shift
    if $record has "$row"; then return; fi
    (flock -n 9 || exit 0; "$@") 9> "runs/$row.lock"
}

recipe() {  # METHOD LAM SEED LARGE_LAM: the whole recipe, scored on both groups of people
    large "$@"
    judge choose "large_$1_$2_$3" "recipe_$1_$3"
    judge report "large_$1_$2_$3" "other_seeds_$1_$3"
}

search() {  # METHOD LAM SEED: at 64x64, half of the updates there
    small "$1" "$2" "$3" 450
    judge choose "small450_$1_$2_$3" "search_$1_$2_$3"
}

full() {  # ROW METHOD LAM SEED LARGE_LAM
    large "$2" "$3" "$4" "$5"
    judge report "large_$2_$3_$4" "$1"
}

grid() {  # METHOD LAM...: each lam with two seeds; the best at an end asks for one more beyond it
    local method=$1 lam seed
    shift
    for lam in "$@"; do for seed in 10 11; do
        once "search_${method}_${lam}_$seed" search "$method" "$lam" "$seed"
    done; done
}

chosen() {  # METHOD LAM...: the grid, what lies beyond it, then three seeds of the best lam
    local method=$1 beyond lam
    grid "$@"
    if beyond=$($record beyond "$method") && [ -n "$beyond" ]; then grid "$method" "$beyond"; fi
    lam=$($record best "$method") || { [ $? = 3 ]; return; }  # 3: the other one still searches
    for seed in 0 1 2; do
        once "${method}_$seed" full "${method}_$seed" "$method" "$lam" "$seed" \
            "$($record large_lam "$method" "$lam")"
    done
}

evened() {  # PI with UAPI's lam over UAPI's mean scale: the likelihood without its weight
    local even seed
    even=$($record even) || { [ $? = 3 ]; return; }
    for seed in 0 1 2; do
        once "even_$seed" full "even_$seed" pi "$even" "$seed" "$($record large_lam pi "$even")"
    done
}

for seed in 10 11 12; do once "other_seeds_uapi_$seed" recipe uapi 2 "$seed" 4; done
once references flock runs/json.lock $record references
chosen uapi 0.5 2 8
chosen pi 10 40 160
chosen cut 0.25 1 4  # the quickest of the compared methods
chosen cyclegan 2.5 10 40
for seed in 0 1 2; do once "lam0_$seed" full "lam0_$seed" uapi 0 "$seed" 0; done
evened
chosen gcgan 2.5 10 40
chosen uagc 0.5 2 8
chosen ugac 2.5 10 40
