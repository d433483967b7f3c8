#!/usr/bin/env bash
# Small photographs of ten kinds: convolution, normalisation, schedules, and speed.
source "$(dirname "$(readlink -f "$0" 2> /dev/null || echo "$0")")/../../tools/recipe.sh"

option_corpus cifar10 synthetic=shapes folder=image_folder::"class folders or manifest.tsv"
option_path config   ""     "what to train: conf/fast.yaml"
option      dev      5000   "training images held out to judge by while training (0: none; the last epoch counts)"
option      size     32     "folder, synthetic: pixels a side"
option      channels 3      "folder, synthetic: 1 is grey, 3 is colour"
option      split_by auto   "folder: how it is split: auto | column | random (80/10/10 of each class)"
option      decode   all    "how to predict: all, plain, or tta (views averaged, as decode.tta says)"
parse_options "$@"
config=${config:-conf/fast.yaml}
choose_corpus  # $module, $raw, $whole, $name

# Published images are split already, but for those held out; other pictures are brought to one size and split here.
case $corpus in
  synthetic | folder) options=(--option "size=$size" --option "channels=$channels" --split_by "$split_by") ;;
  *) options=(--option "dev=$dev"); [ "$dev" = 5000 ] || name=${name}_dev$dev ;;
esac
data=data/$name exp=${exp:-exp/${name}_$(stem "$config")$tag}

# Once for all recipes; a corpus of one's own (--data_dir) is used where it lies.
[ -n "$data_dir" ] ||
stage 0 "Fetch the corpus" --out "$whole" \
  -- python -m speechlab.corpora "$module" --to "$downloads"

# All images in one file: opening thousands of small ones in every epoch would take longer than learning from them.
stage 1 "Pack the images" --in "$whole" --out "$data/images.json" \
  -- python -m speechlab.prepare "$module" --from "$raw" --to "$data" --nj "$nj" "${options[@]}"

# The pixels are the features, and the classes the targets: so there is no stage 2 or 3.
stage 4 "Train" --gpu --ddp --train --conf data,model,loss,optim,train --in "$data/images.json" \
  --out "$exp/checkpoints/final.pt" -- python -m speechlab.train "$config" --data "$data" --exp "$exp"

# On images that training never saw, as they are and (tta) seen several ways.
stage 5 "Predict" --gpu --conf decode --in "$exp/checkpoints/final.pt" "$data/images.json" \
  --out "$exp/decode/methods.json" \
  -- python -m speechlab.decode "$exp" --config "$config" --data "$data" --methods "$decode"

# How many are right, with the interval within which chance could have moved it; which are wrong; and the report.
stage 6 "Score" --in "$exp/decode/*/*/pred.jsonl" --out "$exp/results.txt" "$exp/results.json" \
  -- python -m speechlab.score "$exp" --corpus "$name"

run_stages
