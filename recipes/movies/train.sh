#!/usr/bin/env bash
# Train both values of the film-review study, decode 100 held-out prompts with them, and measure.
# Run it from the project's root; every step goes on from where it was stopped.
set -euo pipefail
here=recipes/movies
out=runs/movies
mkdir -p $out

ivg train-implicit $here/train-implicit.yaml --in $here/pairs-train.jsonl --out $out/implicit --resume
ivg train-explicit $here/train-explicit.yaml --in $here/pairs-train.jsonl --guide $out/implicit \
    --out $out/explicit --resume

steer() { # NAME MODE [flags]
    local name=$1 mode=$2
    shift 2
    ivg generate $here/steer.yaml --mode "$mode" --in $here/prompts-held-out.jsonl --limit 100 \
        --out $out/"$name".jsonl --resume "$@"
}
steer base base
steer eft-i eft-i --guide $out/implicit
steer eft-e eft-e --guide $out/explicit --weight 2
steer cbs-i cbs-i --guide $out/implicit
steer cbs-e cbs-e --guide $out/explicit
steer ivg ivg --guide $out/implicit --guide $out/explicit
python $here/measure.py $out $out/{base,eft-i,eft-e,cbs-i,cbs-e,ivg}.jsonl
