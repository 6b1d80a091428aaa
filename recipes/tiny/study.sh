#!/usr/bin/env bash
# The whole study on networks of a few hundred thousand weights: make models and pairs, train every
# kind of value, decode with them. Two minutes on two cores; run it from the project's root.
set -euo pipefail
here=recipes/tiny
out=runs/tiny
reviews=recipes/movies/pairs-train.jsonl
mkdir -p $out

python $here/make_models.py $reviews $out/models

ivg synthesize $here/synthesize.yaml --in $out/models/prompts-train.jsonl --out $out/pairs.jsonl
ivg train-implicit $here/train-implicit.yaml --in $out/pairs.jsonl --out $out/implicit
ivg train-explicit $here/fudge.yaml --in $out/pairs.jsonl --out $out/fudge --guide $out/implicit
ivg train-explicit $here/vas.yaml --in $out/models/prompts-train.jsonl --out $out/vas
ivg train-explicit $here/ivo.yaml --in $out/models/prompts-train.jsonl --out $out/ivo

steer() { # NAME MODE [flags]: decode the held-out prompts
    local name=$1 mode=$2
    shift 2
    ivg generate --base $out/models/base --mode "$mode" --in $out/models/prompts-held-out.jsonl \
        --out $out/"$name".jsonl --max-new-tokens 16 --samples 4 --set chunk.chunk_length=4 "$@"
}
steer 1-base base
steer 2-eft-i eft-i --guide $out/implicit --weight 1
steer 3-cbs-e-fudge cbs-e --guide $out/fudge
steer 4-eft-e-vas eft-e --guide $out/vas --weight 8
steer 5-eft-e-ivo eft-e --guide $out/ivo --weight 8
steer 6-ivg ivg --guide $out/implicit --guide $out/fudge
python recipes/critics/show.py $out/[1-9]-*.jsonl
