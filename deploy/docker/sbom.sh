#!/usr/bin/env bash
# Shows what an image is made of, as CycloneDX: deploy/docker/sbom.sh IMAGE
set -euo pipefail
exec "${DOCKER:-docker}" run --rm --network none --entrypoint node "${1:?names no image}" \
  -e 'process.stdout.write(require("node:fs").readFileSync("/usr/share/atelier/sbom.json"))'
