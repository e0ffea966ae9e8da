{{- define "atelier.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{- end -}}
{{- end -}}

{{/* Of what is chosen by: stays the same over upgrades. Takes {root, component}. */}}
{{- define "atelier.selector" -}}
app.kubernetes.io/name: atelier
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "atelier.labels" -}}
{{ include "atelier.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: atelier
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Takes {root, image}. */}}
{{- define "atelier.image" -}}
{{ .root.Values.image.registry }}{{ .image }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{/* What every pod of ours has. Takes {root, account, apiAccess}. */}}
{{- define "atelier.podBasics" -}}
serviceAccountName: {{ .account }}
automountServiceAccountToken: {{ .apiAccess | default false }}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- end -}}

{{- define "atelier.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/*
Environment of a container. Takes {wired, config, secrets}: what the chart knows, the service's own variables, and those out
of secrets. Names come in order, so that a render is the same each time.
*/}}
{{- define "atelier.env" -}}
{{- $plain := merge (dict) .wired .config -}}
{{- range $name := keys $plain | sortAlpha }}
{{- if not (hasKey $.secrets $name) }}
{{- $value := get $plain $name }}
- name: {{ $name }}
  value: {{ if kindIs "float64" $value }}{{ $value | toJson | quote }}{{ else }}{{ $value | toString | quote }}{{ end }}
{{- end }}
{{- end }}
{{- range $name := keys .secrets | sortAlpha }}
{{- $from := get $.secrets $name }}
- name: {{ $name }}
  valueFrom:
    secretKeyRef: {name: {{ $from.name | quote }}, key: {{ $from.key | quote }}}
{{- end }}
{{- end -}}

{{/* The secrets' entries that gateways, jobs and workers share: {name, key} by variable, as JSON. */}}
{{- define "atelier.tokenSecret" -}}
{{- $token := .Values.internalToken -}}
{{- dict "name" ($token.secretName | default (printf "%s-internal" (include "atelier.fullname" .))) "key" $token.key | toJson -}}
{{- end -}}

{{/* Queue and objects, of jobs and of workers that take items: {wired, secrets} as JSON. */}}
{{- define "atelier.bulk" -}}
{{- $wired := dict -}}
{{- $secrets := dict -}}
{{- $name := include "atelier.fullname" . -}}
{{- if .Values.nats.enabled -}}
{{- $_ := set $wired "ATELIER_QUEUE" (printf "nats://%s-nats:4222" $name) -}}
{{- else if .Values.nats.external.secret.name -}}
{{- $_ := set $secrets "ATELIER_QUEUE" (dict "name" .Values.nats.external.secret.name "key" .Values.nats.external.secret.key) -}}
{{- else -}}
{{- $_ := set $wired "ATELIER_QUEUE" .Values.nats.external.url -}}
{{- end -}}
{{- if eq .Values.objects.address "file" -}}
{{- $_ := set $wired "ATELIER_OBJECTS" "file:/var/lib/atelier/objects" -}}
{{- else -}}
{{- $_ := set $wired "ATELIER_OBJECTS" .Values.objects.address -}}
{{- $s3 := .Values.objects.s3 -}}
{{- with $s3.endpoint }}{{ $_ := set $wired "ATELIER_S3_ENDPOINT" . }}{{ end -}}
{{- $_ := set $wired "ATELIER_S3_REGION" $s3.region -}}
{{- $_ := set $wired "ATELIER_S3_PATH_STYLE" ($s3.pathStyle | toString) -}}
{{- with $s3.credentialsSecret -}}
{{- range $variable := list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}{{ $_ := set $secrets $variable (dict "name" $s3.credentialsSecret "key" $variable) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- dict "wired" $wired "secrets" $secrets | toJson -}}
{{- end -}}

{{- define "atelier.objectsClaim" -}}
{{ .Values.objects.volume.claimName | default (printf "%s-objects" (include "atelier.fullname" .)) }}
{{- end -}}

{{/* The pools, or the one where none is named: JSON. Not in values.yaml, since Helm would add it to those that are. */}}
{{- define "atelier.pools" -}}
{{ .Values.pools | default (dict "default" dict) | toJson }}
{{- end -}}

{{/* A pool's values over those of all: JSON. Takes {root, name}. */}}
{{- define "atelier.pool" -}}
{{- $pool := mustMergeOverwrite (deepCopy .root.Values.worker) (deepCopy (get (include "atelier.pools" .root | fromJson) .name | default dict)) -}}
{{- if kindIs "invalid" $pool.gpu.enabled -}}{{ $_ := set $pool.gpu "enabled" (has $pool.device (list "cuda" "tensorrt")) }}{{- end -}}
{{- $_ := set $pool "bulk" (and .root.Values.jobs.enabled (has "bulk" $pool.serves)) -}}
{{- $_ := set $pool "interactive" (has "interactive" $pool.serves) -}}
{{- $pool | toJson -}}
{{- end -}}

{{/*
What a pool is scaled by: entries of {metric, query, target}, as JSON. Takes {root, name, pool}.
The work of interactive requests is what its workers have accepted (every gateway sees all of them, so the maximum), what
waits in gateways for room, and what arrives within the target's time: workers = work / target. See docs/autoscaling.md.
*/}}
{{- define "atelier.scaledBy" -}}
{{- $scaling := .pool.autoscaling -}}
{{- $namespace := printf "namespace=%q" .root.Release.Namespace -}}
{{- $urgent := "class!=\"bulk\"" -}}
{{- $name := printf "%s_%s" (include "atelier.fullname" .root) .name | replace "-" "_" -}}
{{- $entries := list -}}
{{- if .pool.interactive -}}
{{- $mine := printf "%s,pool=%q,%s" $namespace .name $urgent -}}
{{- $accepted := printf "max(sum by (instance) (atelier_gateway_backlog_device_seconds{%s}))" $mine -}}
{{- $waiting := printf "sum(atelier_gateway_unplaced_device_seconds{%s,%s})" $namespace $urgent -}}
{{- $arriving := printf "%v * sum(rate(atelier_gateway_placed_device_seconds_total{%s}[1m]))" $scaling.targetSeconds $mine -}}
{{- $query := printf "%s + (%s or vector(0)) + (%s or vector(0))" $accepted $waiting $arriving -}}
{{- $entries = append $entries (dict "metric" (printf "atelier_work_device_seconds_%s" $name) "query" $query "target" $scaling.targetSeconds) -}}
{{- end -}}
{{- if and .pool.bulk (gt (float64 $scaling.bulkTargetSeconds) 0.0) -}}
{{- $query := printf "sum(atelier_jobs_backlog_device_seconds{%s,model=~%q}) or vector(0)" $namespace (join "|" .pool.models) -}}
{{- $entries = append $entries (dict "metric" (printf "atelier_bulk_work_device_seconds_%s" $name) "query" $query "target" $scaling.bulkTargetSeconds) -}}
{{- end -}}
{{- $entries | toJson -}}
{{- end -}}

{{/* What the values say together and cannot mean: each with the value's name. */}}
{{- define "atelier.check" -}}
{{- $values := .Values -}}
{{- $problems := list -}}
{{- $keyed := or $values.gateway.keys.secretName (hasKey $values.gateway.secrets "ATELIER_KEYS") -}}
{{- if and (not $keyed) (not $values.gateway.anonymous) -}}
{{- $problems = append $problems "gateway.keys.secretName is empty: name a secret with API keys (docs/tenants.md), or set gateway.anonymous=true where a proxy before the gateway asks who callers are" -}}
{{- end -}}
{{- if and $values.redis.enabled (or $values.redis.external.url $values.redis.external.secret.name) -}}
{{- $problems = append $problems "redis.enabled=true beside redis.external: set redis.enabled=false to use your own Redis" -}}
{{- end -}}
{{- if and $values.nats.enabled (or $values.nats.external.url $values.nats.external.secret.name) -}}
{{- $problems = append $problems "nats.enabled=true beside nats.external: set nats.enabled=false to use your own NATS" -}}
{{- end -}}
{{- if and $values.jobs.enabled (not $values.nats.enabled) (not $values.nats.external.url) (not $values.nats.external.secret.name) -}}
{{- $problems = append $problems "nats.external.url is empty, and nats.enabled=false: bulk jobs have no queue (or set jobs.enabled=false)" -}}
{{- end -}}
{{- $interactive := false -}}
{{- range $name := keys (include "atelier.pools" . | fromJson) | sortAlpha -}}
{{- $pool := include "atelier.pool" (dict "root" $ "name" $name) | fromJson -}}
{{- if $pool.interactive }}{{ $interactive = true }}{{ end -}}
{{- if and (has "bulk" $pool.serves) (not $values.jobs.enabled) (not $pool.interactive) -}}
{{- $problems = append $problems (printf "pools.%s.serves is [bulk], and jobs.enabled=false: it would have nothing to do" $name) -}}
{{- end -}}
{{- $scaling := $pool.autoscaling -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
{{- $problems = append $problems (printf "pools.%s.autoscaling.minReplicas=%d is more than maxReplicas=%d" $name (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
{{- if and (eq (int $scaling.minReplicas) 0) (eq $scaling.kind "hpa") -}}
{{- $problems = append $problems (printf "pools.%s.autoscaling.minReplicas=0 needs autoscaling.kind=keda: an HPA does not scale to zero" $name) -}}
{{- end -}}
{{- if and (eq (int $scaling.minReplicas) 0) $pool.interactive (ne $scaling.kind "none") -}}
{{- $problems = append $problems (printf "pools.%s.autoscaling.minReplicas=0: a pool that serves interactive requests keeps one worker, since a request does not wait for a GPU to start" $name) -}}
{{- end -}}
{{- if and (not $pool.interactive) (ne $scaling.kind "none") (eq (float64 $scaling.bulkTargetSeconds) 0.0) -}}
{{- $problems = append $problems (printf "pools.%s.autoscaling.bulkTargetSeconds=0, and the pool serves bulk only: there is nothing to scale it by" $name) -}}
{{- end -}}
{{- if and $pool.spot (gt (int $pool.drainSeconds) 25) -}}
{{- $problems = append $problems (printf "pools.%s.drainSeconds=%d: spot nodes give 30 s of notice; 25 at most" $name (int $pool.drainSeconds)) -}}
{{- end -}}
{{- if and (eq $pool.modelCache.kind "claim") (not $pool.modelCache.claimName) -}}
{{- $problems = append $problems (printf "pools.%s.modelCache.claimName is empty, and modelCache.kind is claim" $name) -}}
{{- end -}}
{{- end -}}
{{- if not $interactive -}}{{- $problems = append $problems "pools: none of them serves interactive, so gateways would have no worker" -}}{{- end -}}
{{- if and $values.ingress.enabled (not $values.ingress.hosts) -}}{{- $problems = append $problems "ingress.hosts is empty, and ingress.enabled=true" -}}{{- end -}}
{{- if and $values.httpRoute.enabled (not $values.httpRoute.parentRefs) -}}{{- $problems = append $problems "httpRoute.parentRefs is empty, and httpRoute.enabled=true" -}}{{- end -}}
{{- if or (and $values.workerTls.gatewaySecret (not $values.workerTls.workerSecret)) (and $values.workerTls.workerSecret (not $values.workerTls.gatewaySecret)) -}}
{{- $problems = append $problems "workerTls.gatewaySecret and workerTls.workerSecret must be set together" -}}
{{- end -}}
{{- if $problems -}}{{ fail (printf "\nthe values cannot be used:\n  %s" (join "\n  " $problems)) }}{{- end -}}
{{- end -}}
