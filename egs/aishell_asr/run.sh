#!/usr/bin/env bash
# Mandarin speech recognition: a CTC/attention Conformer over characters, searched every way.
source "$(dirname "$0")/../../tools/recipe.sh"

option      corpus   mini                 "mini | an4 | aishell | synthetic | folder, kaldi (with --data_dir)"
option_path data_dir ""                   "a corpus on disk: manifest.tsv, Kaldi data directories, AISHELL-1 as published"
option      split_by auto                 "how a folder is split: auto | speaker | column | random"
option_path config   ""                   "what to train: conf/conformer.yaml, or conf/an4.yaml for an4"
option      lm_text  auto                 "more text for the n-gram model, a sentence a line: auto (mini: fetched) | none | FILE"
option_path lm_conf  ""                   "a language model as a network too, for rescoring: conf/lm_transformer.yaml"
option      decode   all                  "search methods: all, or some of ctc_greedy ctc_beam ctc_beam_lm attention joint rescore"
parse_options "$@"
[ -n "$config" ] || case $corpus in an4) config=conf/an4.yaml ;; *) config=conf/conformer.yaml ;; esac
contract features tokens lm  # the names of their folders, from $config: two configs never share one by mistake

case $corpus in mini) module=hsk_gcin ;; *) module=$corpus ;; esac
raw=${data_dir:-$downloads/$module} name=$corpus
whole=${data_dir:-$raw/.complete}  # by which one sees that the corpus is there
if [ "$corpus" = folder ] || [ "$corpus" = kaldi ]; then
  [ -n "$data_dir" ] || [ "$help" = true ] || fail "--corpus $corpus needs --data_dir DIR (see README.md)"
  [ "$corpus" = kaldi ] || [ -f "$raw/manifest.tsv" ] || [ "$help" = true ] ||
    fail "no manifest.tsv in $raw: it must be a table with the columns path and text (see README.md)"
  whole=$raw/manifest.tsv
  if [ "$corpus" = kaldi ]; then whole=$raw/wav.scp; [ -f "$whole" ] || whole="$raw/*/wav.scp"; fi
  name=$(folder_name "$raw")
fi
data=data/$name
case $lm_text in
  auto) if [ "$corpus" = mini ]; then lm_text=$downloads/zh_text/text.txt lm=$lm-text; else lm_text=""; fi ;;
  none) lm_text="" ;;
  *) lm_text=$(user_path lm_text "$lm_text") lm=$lm-$(folder_name "$lm_text")
     [ -f "$lm_text" ] || [ "$help" = true ] || fail "--lm_text $lm_text: no such file" ;;
esac
lm_exp=exp/${name}_$(stem "$lm_conf")
exp=${exp:-exp/${name}_$(stem "$config")$tag}

[ -n "$data_dir" ] ||
stage 0 "Fetch the corpus" --out "$whole" \
  -- python -m speechlab.corpora "$module" --to "$downloads"
[ "$lm_text" != "$downloads/zh_text/text.txt" ] ||
stage 0 "Fetch text for the language model" --out "$lm_text" \
  -- python -m speechlab.corpora zh_text --to "$downloads"
stage 1 "Manifests" --in "$whole" --out "$data"/{train,dev}.jsonl.gz \
  -- python -m speechlab.prepare "$module" --from "$raw" --to "$data" --split_by "$split_by" --nj "$nj"
stage 2 "Fbank" --array --conf features --in "$data"/{train,dev}.jsonl.gz --out "$data/$features"/{train,dev}.jsonl.gz \
  -- python -m speechlab.extract "$config" --data "$data" --to "$data/$features" --nj "$nj"
stage 3 "Tokens" --conf tokens --in "$data/train.jsonl.gz" --out "$data/$tokens/tokens.json" \
  -- python -m speechlab.data.tokens "$config" --data "$data" --to "$data/$tokens"
stage 3 "N-gram language model" --conf lm --in "$data/train.jsonl.gz" "$data/$tokens/tokens.json" ${lm_text:+"$lm_text"} \
  --out "$data/$lm/lm.arpa" "$data/$lm/lm.json" \
  -- python -m speechlab.data.lm "$config" --data "$data" --tokens "$data/$tokens" ${lm_text:+--text "$lm_text"} --to "$data/$lm"
[ -z "$lm_conf" ] ||
stage 3 "Language model as a network" --gpu --ddp --train --in "$data/$tokens/tokens.json" "$lm_conf" \
  --out "$lm_exp/checkpoints/final.pt" -- python -m speechlab.train "$lm_conf" --data "$data" --exp "$lm_exp"
stage 4 "Train" --gpu --ddp --train --conf features,tokens,data,model,decoder,loss,optim,train \
  --in "$data/$features"/{train,dev}.jsonl.gz "$data/$tokens/tokens.json" --out "$exp/checkpoints/final.pt" \
  -- python -m speechlab.train "$config" --data "$data" --exp "$exp"
stage 5 "Decode" --gpu --conf decode --in "$exp/checkpoints/final.pt" "$data/$features/test*.jsonl.gz" "$data/$lm/lm.arpa" \
  ${lm_conf:+"$lm_exp/checkpoints/final.pt"} --out "$exp/decode/methods.json" \
  -- python -m speechlab.decode "$exp" --data "$data" --methods "$decode" --lm "$data/$lm" ${lm_conf:+--neural_lm "$lm_exp"}
[ "$module" != hsk_gcin ] ||
stage 5 "Oracle: true syllables, characters by a language model" --in "$data/train.jsonl.gz" "$data/test*.jsonl.gz" \
  "$data/$lm/lm.arpa" --out "$exp/decode/oracle" -- python local/oracle.py --data "$data" --lm "$data/$lm" --exp "$exp"
stage 6 "Score" --in "$exp/decode/*/*/hyp.jsonl" --out "$exp/results.txt" "$exp/results.json" \
  -- python -m speechlab.score "$exp" --corpus "$name"

run_stages
