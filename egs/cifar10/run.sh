#!/usr/bin/env bash
# Small photographs of ten kinds: convolution, normalisation, schedules, and speed.
source "$(dirname "$(readlink -f "$0" 2> /dev/null || echo "$0")")/../../tools/recipe.sh"

option_corpus cifar10 synthetic=shapes folder=image_folder::"class folders or manifest.tsv"
option_path config   ""     "what to train: conf/fast.yaml"
option      dev      5000   "how many training images are held out to judge each epoch (0: none; the last epoch counts)"
option      size     32     "folder, synthetic: pixels per side"
option      channels 3      "folder, synthetic: 1 is grey, 3 is colour"
option      split_by auto   "folder: how to split it: auto | column | random (80/10/10 of each class)"
option      decode   all    "how to predict: all, plain, or tta (the average over several views; decode.tta says which)"
parse_options "$@"
config=${config:-conf/fast.yaml}
choose_corpus  # $module, $raw, $whole, $name

# Published images are split already; only --dev is held out here. Your own pictures are scaled to one size and split.
case $corpus in
  synthetic | folder) options=(--option "size=$size" --option "channels=$channels" --split_by "$split_by") ;;
  *) options=(--option "dev=$dev"); [ "$dev" = 5000 ] || name=${name}_dev$dev ;;
esac
data=data/$name exp=${exp:-exp/${name}_$(stem "$config")$tag}

# The corpus goes into downloads/, once for all recipes. Your own corpus (--data_dir) is used where it is.
[ -n "$data_dir" ] ||
stage 0 "Fetch the corpus" --out "$whole" \
  -- python -m speechlab.corpora "$module" --to "$downloads"

# All images go into one file per split: opening thousands of small files in each epoch would take longer than learning.
stage 1 "Pack the images" --in "$whole" --out "$data/images.json" \
  -- python -m speechlab.prepare "$module" --from "$raw" --to "$data" --nj "$nj" "${options[@]}"

# The pixels are the features and the classes are the targets, so there is no stage 2 or 3.
stage 4 "Train" --gpu --ddp --train --conf data,model,loss,optim,train --in "$data/images.json" \
  --out "$exp/checkpoints/final.pt" -- python -m speechlab.train "$config" --data "$data" --exp "$exp"

# The network answers images that it never saw in training: each one as it is, and (tta) averaged over several views.
stage 5 "Predict" --gpu --conf decode --in "$exp/checkpoints/final.pt" "$data/images.json" \
  --out "$exp/decode/methods.json" \
  -- python -m speechlab.decode "$exp" --config "$config" --data "$data" --methods "$decode"

# How many answers are right, with the 95 % interval of this figure; which answers are wrong; and the report.
stage 6 "Score" --in "$exp/decode/*/*/pred.jsonl" --out "$exp/results.txt" "$exp/results.json" \
  -- python -m speechlab.score "$exp" --corpus "$name"

run_stages
