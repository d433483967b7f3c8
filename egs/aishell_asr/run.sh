#!/usr/bin/env bash
# Mandarin speech recognition: a Conformer with CTC and attention over characters, and six ways to search.
source "$(dirname "$(readlink -f "$0" 2> /dev/null || echo "$0")")/../../tools/recipe.sh"
option_corpus mini=hsk_gcin an4 aishell synthetic folder:manifest.tsv:"a table with the columns path and text" kaldi:wav.scp
option      split_by auto                 "how a folder is split: auto | speaker | column | random"
option_symbols  # --symbols and --nlsyms: what becomes of <NOISE> and the like in transcripts
option_path config   ""                   "what to train: conf/conformer.yaml, or conf/an4.yaml for an4"
option      lm_text  auto                 "more text for the n-gram model, one sentence per line: auto (mini: fetched) | none | FILE"
option_path lm_conf  ""                   "also train a language model as a network, for rescoring: conf/lm_transformer.yaml"
option      decode   all                  "search methods: all, or some of ctc_greedy ctc_beam ctc_beam_lm attention joint rescore"
parse_options "$@"
[ -n "$config" ] || case $corpus in an4) config=conf/an4.yaml ;; *) config=conf/conformer.yaml ;; esac
choose_corpus                        # $module, $raw, $whole, $name, and $symbol_options for stage 1
contract features tokens lm          # each section of $config names a folder: other settings get another folder
choose_text lm_text lm mini=zh_text  # $lm_text becomes a file or ""; the folder's name $lm says which text was added
data=data/$name features=$data/$features tokens=$data/$tokens lm=$tokens/$lm
lm_exp=exp/${name}_$(stem "$lm_conf") exp=${exp:-exp/${name}_$(stem "$config")$tag}

# Corpus and text go into downloads/, once for all recipes. Transcripts are few: a language model needs more text.
[ "$data_dir" ] || stage 0 "Fetch the corpus" --out "$whole" -- python -m speechlab.corpora "$module" --to "$downloads"
[ "$lm_text" != "$downloads/zh_text/text.txt" ] ||
stage 0 "Fetch text for the language model" --out "$lm_text" -- python -m speechlab.corpora zh_text --to "$downloads"

# From here on all corpora look alike: one line per utterance gives its file, its place there, its speaker and its text.
stage 1 "Manifests" --in "$whole" ${nlsyms:+"$nlsyms"} --out "$data"/{train,dev}.jsonl.gz \
  -- python -m speechlab.prepare "$module" --from "$raw" --to "$data" --split_by "$split_by" --nj "$nj" ${symbol_options[@]+"${symbol_options[@]}"}

# How loud each band of frequencies is, 100 times per second. This is computed only once, and every epoch reads it.
stage 2 "Fbank" --array --conf features --in "$data"/{train,dev}.jsonl.gz --out "$features"/{train,dev}.jsonl.gz \
  -- python -m speechlab.extract "$config" --data "$data" --to "$features" --nj "$nj"

# What the network may answer: the characters (or pieces of words) of the training text. Test sets are not looked at.
stage 3 "Tokens" --conf tokens --in "$data/train.jsonl.gz" --out "$tokens/tokens.json" \
  -- python -m speechlab.tasks.asr.tokens "$config" --data "$data" --to "$tokens"

# Which token follows which: counted, and learned by a network (--lm_conf). $lm is in the folder of the tokens it knows.
stage 3 "N-gram language model" --conf lm --in "$data/train.jsonl.gz" "$tokens/tokens.json" ${lm_text:+"$lm_text"} \
  --out "$lm"/lm.{arpa,json} -- python -m speechlab.tasks.asr.ngram "$config" --data "$data" --tokens "$tokens" \
  ${lm_text:+--text "$lm_text"} --to "$lm"
[ -z "$lm_conf" ] || stage 3 "Language model as a network" --gpu --ddp --train --in "$tokens/tokens.json" "$lm_conf" \
  --out "$lm_exp/checkpoints/final.pt" -- python -m speechlab.train "$lm_conf" --data "$data" --exp "$lm_exp"

# The transcript tells the network what was said. The network itself finds out which frames belong to which character.
stage 4 "Train" --gpu --ddp --train --conf features,tokens,data,model,decoder,loss,optim,train \
  --in "$features"/{train,dev}.jsonl.gz "$tokens/tokens.json" --out "$exp/checkpoints/final.pt" \
  -- python -m speechlab.train "$config" --data "$data" --exp "$exp"

# One network, several ways of searching. The oracle knows every syllable: its errors are the language model's alone.
stage 5 "Decode" --gpu --conf decode --in "$exp/checkpoints/final.pt" "$features/test*.jsonl.gz" "$lm/lm.arpa" \
  ${lm_conf:+"$lm_exp/checkpoints/final.pt"} --out "$exp/decode/methods.json" -- python -m speechlab.decode "$exp" \
  --config "$config" --data "$data" --methods "$decode" --lm "$lm" ${lm_conf:+--neural_lm "$lm_exp"}
[ "$module" != hsk_gcin ] ||
stage 5 "Oracle: true syllables, characters by a language model" --in "$data"/{train,"test*"}.jsonl.gz "$lm/lm.arpa" \
  --out "$exp/decode/oracle" -- python local/oracle.py --data "$data" --lm "$lm" --exp "$exp"

# Errors per hundred characters, with the 95 % interval of each figure; the worst utterances; and the report.
stage 6 "Score" --in "$exp/decode/*/*/hyp.jsonl" --out "$exp/results.txt" "$exp/results.json" \
  -- python -m speechlab.score "$exp" --corpus "$name"

run_stages
