#!/usr/bin/env bash
# What `keras-gpt serve smollm2` answers, by curl. Give another address as an argument.
set -euo pipefail
url=${1:-http://localhost:8000}
header=(-H "Content-Type: application/json")
header+=(-H "Authorization: Bearer ${KERAS_GPT_API_KEY:-none}")

echo "What is served:"
curl -sS "${header[@]}" "$url/v1/models"

printf '\n\nA text goes on:\n'
curl -sS "${header[@]}" "$url/v1/completions" \
    -d '{"prompt": "Once upon a time", "max_tokens": 30, "seed": 1, "stop": ["\n"]}'

printf '\n\nA conversation, piece by piece:\n'
curl -sSN "${header[@]}" "$url/v1/chat/completions" -d '{
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0, "stream": true, "stream_options": {"include_usage": true}}'

printf '\nAs TensorFlow Serving is asked:\n'
curl -sS "${header[@]}" "$url/v1/models/smollm2:predict" \
    -d '{"instances": ["What is the capital of France?"]}'

printf '\n\nWhat Prometheus reads:\n'
curl -sS "${header[@]}" "$url/metrics" | grep -v '^#' | grep -v _bucket
