#!/usr/bin/env bash
# Mandarin speech recognition: a CTC/attention Conformer over characters, searched every way.
source "$(dirname "$(readlink -f "$0" 2> /dev/null || echo "$0")")/../../tools/recipe.sh"

option_corpus mini=hsk_gcin an4 aishell synthetic folder:manifest.tsv:"a table with the columns path and text" kaldi:wav.scp
option      split_by auto                 "how a folder is split: auto | speaker | column | random"
option_path config   ""                   "what to train: conf/conformer.yaml, or conf/an4.yaml for an4"
option      lm_text  auto                 "more text for the n-gram model, a sentence a line: auto (mini: fetched) | none | FILE"
option_path lm_conf  ""                   "a language model as a network too, for rescoring: conf/lm_transformer.yaml"
option      decode   all                  "search methods: all, or some of ctc_greedy ctc_beam ctc_beam_lm attention joint rescore"
parse_options "$@"
[ -n "$config" ] || case $corpus in an4) config=conf/an4.yaml ;; *) config=conf/conformer.yaml ;; esac
choose_corpus                        # $module, $raw, $whole, $name
contract features tokens lm          # the names of their folders, from $config: two configs never share one by mistake
choose_text lm_text lm mini=zh_text  # $lm_text is a file or ""; $lm is named after it as well
data=data/$name features=$data/$features tokens=$data/$tokens lm=$tokens/$lm
lm_exp=exp/${name}_$(stem "$lm_conf") exp=${exp:-exp/${name}_$(stem "$config")$tag}

# Into downloads/, once for all recipes. Transcripts are few: other text shows the language model what people write.
[ "$data_dir" ] || stage 0 "Fetch the corpus" --out "$whole" -- python -m speechlab.corpora "$module" --to "$downloads"
[ "$lm_text" != "$downloads/zh_text/text.txt" ] ||
stage 0 "Fetch text for the language model" --out "$lm_text" -- python -m speechlab.corpora zh_text --to "$downloads"

# From here on all corpora look alike: a line says which part of which file is whose, and what was said in it.
stage 1 "Manifests" --in "$whole" --out "$data"/{train,dev}.jsonl.gz \
  -- python -m speechlab.prepare "$module" --from "$raw" --to "$data" --split_by "$split_by" --nj "$nj"

# How loud each band of frequencies is, 100 times per second: computed once, since every epoch reads it.
stage 2 "Fbank" --array --conf features --in "$data"/{train,dev}.jsonl.gz --out "$features"/{train,dev}.jsonl.gz \
  -- python -m speechlab.extract "$config" --data "$data" --to "$features" --nj "$nj"

# What the network may answer: the characters (or pieces of words) of the training text. Test sets are not looked at.
stage 3 "Tokens" --conf tokens --in "$data/train.jsonl.gz" --out "$tokens/tokens.json" \
  -- python -m speechlab.tasks.asr.tokens "$config" --data "$data" --to "$tokens"

# Which token follows which: counted, and learned (--lm_conf). It lies under its tokens, for it knows no others.
stage 3 "N-gram language model" --conf lm --in "$data/train.jsonl.gz" "$tokens/tokens.json" ${lm_text:+"$lm_text"} \
  --out "$lm"/lm.{arpa,json} -- python -m speechlab.tasks.asr.ngram "$config" --data "$data" --tokens "$tokens" \
  ${lm_text:+--text "$lm_text"} --to "$lm"
[ -z "$lm_conf" ] || stage 3 "Language model as a network" --gpu --ddp --train --in "$tokens/tokens.json" "$lm_conf" \
  --out "$lm_exp/checkpoints/final.pt" -- python -m speechlab.train "$lm_conf" --data "$data" --exp "$lm_exp"

# The network is told what was said, and finds by itself when: which frames make which character.
stage 4 "Train" --gpu --ddp --train --conf features,tokens,data,model,decoder,loss,optim,train \
  --in "$features"/{train,dev}.jsonl.gz "$tokens/tokens.json" --out "$exp/checkpoints/final.pt" \
  -- python -m speechlab.train "$config" --data "$data" --exp "$exp"

# One network, searched every way. The oracle hears every syllable right: what it gets wrong, no better ear can mend.
stage 5 "Decode" --gpu --conf decode --in "$exp/checkpoints/final.pt" "$features/test*.jsonl.gz" "$lm/lm.arpa" \
  ${lm_conf:+"$lm_exp/checkpoints/final.pt"} --out "$exp/decode/methods.json" -- python -m speechlab.decode "$exp" \
  --config "$config" --data "$data" --methods "$decode" --lm "$lm" ${lm_conf:+--neural_lm "$lm_exp"}
[ "$module" != hsk_gcin ] ||
stage 5 "Oracle: true syllables, characters by a language model" --in "$data"/{train,"test*"}.jsonl.gz "$lm/lm.arpa" \
  --out "$exp/decode/oracle" -- python local/oracle.py --data "$data" --lm "$lm" --exp "$exp"

# Errors per hundred characters, with the interval within which chance could have moved them; and the report.
stage 6 "Score" --in "$exp/decode/*/*/hyp.jsonl" --out "$exp/results.txt" "$exp/results.json" \
  -- python -m speechlab.score "$exp" --corpus "$name"

run_stages
