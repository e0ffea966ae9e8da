#!/usr/bin/env bash
# Builds the images: deploy/docker/build.sh [NAME...], by default all that need no GPU's base image. Variables:
#   ATELIER_REGISTRY  before every name, as registry.example/team/      ATELIER_TAG  (dev)
#   NODE_IMAGE, RUNTIME_IMAGE, CUDA_IMAGE  other base images, best with their digest: name:tag@sha256:...
#   DOCKER  (docker)     BUILD_FLAGS  more for `docker build`
set -euo pipefail
cd "$(dirname "$0")/../.."
names=("$@")
[ $# -gt 0 ] || names=(gateway worker jobs cli)

version=$(sed -n 's/^  "version": "\(.*\)",$/\1/p' package.json)
revision=${ATELIER_REVISION:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
args=(--build-arg "REVISION=$revision" --build-arg "VERSION=$version")
for base in NODE_IMAGE RUNTIME_IMAGE CUDA_IMAGE; do
  if [ -n "${!base:-}" ]; then args+=(--build-arg "$base=${!base}"); fi
done

export DOCKER_BUILDKIT=1
for name in "${names[@]}"; do
  image=${ATELIER_REGISTRY:-}atelier-$name:${ATELIER_TAG:-dev}
  echo "building $image"
  # shellcheck disable=SC2086 # several flags, if any
  ${DOCKER:-docker} build --file "deploy/docker/$name.Dockerfile" --tag "$image" "${args[@]}" ${BUILD_FLAGS:-} .
done
