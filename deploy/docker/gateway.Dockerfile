# The gateway: HTTP and gRPC in, pictures out. Stages and what all images share: docs/containers.md
ARG NODE_IMAGE=node:24.21.0-bookworm-slim
ARG RUNTIME_IMAGE=debian:bookworm-slim

# The manifests alone, so that packages are installed anew only where one of these changes.
FROM ${NODE_IMAGE} AS manifests
WORKDIR /src
COPY . .
RUN mkdir /manifests && find . -name 'package*.json' -print0 | tar -cf - --null -T - | tar -xf - -C /manifests

FROM ${NODE_IMAGE} AS build
WORKDIR /app
COPY --from=manifests /manifests ./
# onnxruntime-node's own script would fetch CUDA libraries of 300 MB; whatever else is native comes built.
RUN ONNXRUNTIME_NODE_INSTALL=skip npm ci --workspace services/gateway --omit=dev --ignore-scripts --no-audit --no-fund
COPY --from=manifests /src /src
RUN node /src/deploy/docker/build/assemble.mjs gateway /src /app

FROM ${RUNTIME_IMAGE} AS runtime
RUN apt-get update \
 && apt-get install -y --no-install-recommends tini \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log \
 && groupadd --gid 10001 atelier \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/atelier --no-create-home --shell /usr/sbin/nologin atelier \
 && install -d -o 10001 -g 10001 -m 0750 /var/lib/atelier /var/lib/atelier/objects /var/lib/atelier/state
COPY --from=build /usr/local/bin/node /usr/local/bin/node

FROM build AS sbom
COPY --from=runtime /var/lib/dpkg/status /dpkg-status
RUN node /src/deploy/docker/build/sbom.mjs gateway /app /dpkg-status /sbom.json

FROM runtime
ARG VERSION=unknown
ARG REVISION=unknown
COPY --from=build /src/deploy/docker/healthcheck.mjs /usr/share/atelier/healthcheck.mjs
COPY --from=build /app /app
COPY --from=sbom /sbom.json /usr/share/atelier/sbom.json
LABEL org.opencontainers.image.title="atelier-gateway" \
      org.opencontainers.image.description="HTTP and gRPC in, pictures out" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV NODE_ENV=production \
    ATELIER_REVISION=${REVISION} \
    ATELIER_LISTEN=0.0.0.0:8080
EXPOSE 8080 50050
USER 10001:10001
WORKDIR /app
# Alive, not ready: without a worker a gateway has nothing to restart for.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
  CMD ["node", "/usr/share/atelier/healthcheck.mjs", "ATELIER_LISTEN", "/healthz", "ATELIER_TLS_CERT"]
ENTRYPOINT ["/usr/bin/tini", "--", "node", "services/gateway/src/main.ts"]
