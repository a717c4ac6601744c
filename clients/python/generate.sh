#!/usr/bin/env bash
# Writes the types of messages, replies and events (tokenkeeper_client/wire.py): generate.sh PYTHON SCHEMA FILE
# PYTHON has the packages of clients/requirements.txt. scripts/clients.sh --generate runs this, and scripts/clients.sh compares.
set -euo pipefail

"$1" -m datamodel_code_generator --input "$2" --output "$3" --input-file-type jsonschema \
  --output-model-type typing.TypedDict --target-python-version 3.11 --enum-field-as-literal all \
  --disable-future-imports --disable-timestamp --formatters builtin
