#!/usr/bin/env bash
# Mandarin speech recognition: a CTC Conformer over characters.
source "$(dirname "$0")/../../tools/recipe.sh"

option      corpus   mini                 "mini | an4 | aishell | synthetic | folder (with --data_dir)"
option_path data_dir ""                   "a corpus on disk: a folder with manifest.tsv, or AISHELL-1 as published"
option      split_by auto                 "how a folder is split: auto | speaker | column | random"
option_path config   ""                   "what to train: conf/conformer.yaml, or conf/plain.yaml for an4"
option      decode   "ctc_greedy ctc_beam" "search methods to compare"
parse_options "$@"
[ -n "$config" ] || case $corpus in an4) config=conf/plain.yaml ;; *) config=conf/conformer.yaml ;; esac
contract features tokens  # the names of their folders, from $config: two configs never share one by mistake

case $corpus in mini) module=hsk_gcin ;; *) module=$corpus ;; esac
raw=${data_dir:-$downloads/$module} name=$corpus
whole=${data_dir:-$raw/.complete}  # by which one sees that the corpus is there
if [ "$corpus" = folder ]; then
  [ -n "$data_dir" ] || [ "$help" = true ] || fail "--corpus folder needs --data_dir DIR, a folder with manifest.tsv"
  [ -f "$raw/manifest.tsv" ] || [ "$help" = true ] ||
    fail "no manifest.tsv in $raw: it must be a table with the columns path and text (see README.md)"
  whole=$raw/manifest.tsv name=$(folder_name "$raw")
fi
data=data/$name
exp=${exp:-exp/${name}_$(stem "$config")$tag}

[ -n "$data_dir" ] ||
stage 0 "Fetch the corpus" --out "$whole" \
  -- python -m speechlab.corpora "$module" --to "$downloads"
stage 1 "Manifests" --in "$whole" --out "$data"/{train,dev}.jsonl.gz \
  -- python -m speechlab.prepare "$module" --from "$raw" --to "$data" --split_by "$split_by" --nj "$nj"
stage 2 "Fbank" --conf features --in "$data"/{train,dev}.jsonl.gz --out "$data/$features"/{train,dev}.jsonl.gz \
  -- python -m speechlab.extract "$config" --data "$data" --to "$data/$features" --nj "$nj"
stage 3 "Tokens" --conf tokens --in "$data/train.jsonl.gz" --out "$data/$tokens/tokens.json" \
  -- python -m speechlab.data.tokens "$config" --data "$data" --to "$data/$tokens"
stage 4 "Train" --gpu --ddp --train --conf features,tokens,data,model,loss,optim,train \
  --in "$data/$features"/{train,dev}.jsonl.gz "$data/$tokens/tokens.json" --out "$exp/checkpoints/final.pt" \
  -- python -m speechlab.train "$config" --data "$data" --exp "$exp"
stage 5 "Decode" --gpu --conf decode --in "$exp/checkpoints/final.pt" "$data/$features/test*.jsonl.gz" --out "$exp/decode/${decode%% *}" \
  -- python -m speechlab.decode "$exp" --data "$data" --methods "$decode"
[ "$module" != hsk_gcin ] ||
stage 5 "Oracle: true syllables, characters by a language model" --in "$data/train.jsonl.gz" "$data/test*.jsonl.gz" \
  --out "$exp/decode/oracle" -- python local/oracle.py --data "$data" --exp "$exp"
stage 6 "Score" --in "$exp/decode/*/*/hyp.jsonl" --out "$exp/results.txt" "$exp/results.json" \
  -- python -m speechlab.score "$exp" --corpus "$name"

run_stages
