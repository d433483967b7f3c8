#!/usr/bin/env bash
# Small photographs of ten kinds: convolution, normalisation, schedules, and speed.
source "$(dirname "$0")/../../tools/recipe.sh"

option      corpus   cifar10  "cifar10 | synthetic | folder (with --data_dir)"
option_path data_dir ""     "a corpus on disk: class folders or manifest.tsv (folder), or the published files"
option_path config   ""     "what to train: conf/fast.yaml"
option      dev      5000   "training images held out to judge by while training (0: none; the last epoch counts)"
option      size     32     "folder, synthetic: pixels a side"
option      channels 3      "folder, synthetic: 1 is grey, 3 is colour"
option      split_by auto   "folder: how it is split: auto | column | random (80/10/10 of each class)"
option      decode   all    "how to predict: all, plain, or tta (views averaged, as decode.tta says)"
parse_options "$@"
config=${config:-conf/fast.yaml}

module=$corpus name=$corpus options=(--option "dev=$dev")
case $corpus in
  synthetic) module=shapes ;;
  folder)
    module=image_folder
    [ -n "$data_dir" ] || [ "$help" = true ] || fail "--corpus folder needs --data_dir DIR (see README.md)"
    name=$(folder_name "$data_dir") ;;
esac
case $corpus in synthetic | folder) options=(--option "size=$size" --option "channels=$channels" --split_by "$split_by") ;; esac
[ "$dev" = 5000 ] || [ "$corpus" = synthetic ] || [ "$corpus" = folder ] || name=${name}_dev$dev
raw=${data_dir:-$downloads/$module} whole=${data_dir:-$downloads/$module/.complete}
data=data/$name exp=${exp:-exp/${name}_$(stem "$config")$tag}

[ -n "$data_dir" ] ||
stage 0 "Fetch the corpus" --out "$whole" \
  -- python -m speechlab.corpora "$module" --to "$downloads"
stage 1 "Pack the images" --in "$whole" --out "$data/images.json" \
  -- python -m speechlab.prepare "$module" --from "$raw" --to "$data" --nj "$nj" "${options[@]}"
stage 4 "Train" --gpu --ddp --train --conf data,model,loss,optim,train --in "$data/images.json" \
  --out "$exp/checkpoints/final.pt" -- python -m speechlab.train "$config" --data "$data" --exp "$exp"
stage 5 "Predict" --gpu --conf decode --in "$exp/checkpoints/final.pt" "$data/images.json" \
  --out "$exp/decode/methods.json" -- python -m speechlab.decode "$exp" --data "$data" --methods "$decode"
stage 6 "Score" --in "$exp/decode/*/*/pred.jsonl" --out "$exp/results.txt" "$exp/results.json" \
  -- python -m speechlab.score "$exp" --corpus "$name"

run_stages
