/**
 * What KWOK makes of nodes and pods: a node is ready, a pod that was placed on it says that it runs and is ready, and one
 * that is deleted is gone. Source: KWOK's Stage resource (kwok.x-k8s.io/v1alpha1).
 */
const condition = (type: string) => `- {type: ${type}, status: "True", lastTransitionTime: {{ Now | Quote }}}`;

const stages = [
  {
    name: "node-ready",
    kind: "Node",
    when: [
      { key: '.status.conditions.[] | select( .type == "Ready" ) | .status', operator: "NotIn", values: ["True"] },
    ],
    next: {
      statusTemplate: `
conditions:
- {type: Ready, status: "True", reason: Simulated, message: a node without a machine, lastHeartbeatTime: {{ Now | Quote }}, lastTransitionTime: {{ Now | Quote }}}
phase: Running
`,
    },
  },
  {
    name: "pod-ready",
    kind: "Pod",
    when: [
      { key: ".metadata.deletionTimestamp", operator: "DoesNotExist" },
      { key: ".status.phase", operator: "In", values: ["Pending"] },
    ],
    next: {
      statusTemplate: `
phase: Running
startTime: {{ Now | Quote }}
conditions:
${["Initialized", "ContainersReady", "Ready"].map(condition).join("\n")}
initContainerStatuses:
{{ range .spec.initContainers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  ready: true
  restartCount: 0
  state: {terminated: {exitCode: 0, reason: Completed, startedAt: {{ Now | Quote }}, finishedAt: {{ Now | Quote }}}}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  ready: true
  restartCount: 0
  state: {running: {startedAt: {{ Now | Quote }}}}
{{ end }}
{{ with PodIPsWith .spec.nodeName ( or .spec.hostNetwork false ) ( or .metadata.uid "" ) ( or .metadata.name "" ) ( or .metadata.namespace "" ) }}
podIP: {{ index . 0 | Quote }}
podIPs:
{{ range . }}
- ip: {{ . | Quote }}
{{ end }}
{{ end }}
`,
    },
  },
  {
    name: "pod-gone",
    kind: "Pod",
    when: [{ key: ".metadata.deletionTimestamp", operator: "Exists" }],
    next: { delete: true },
  },
];

/** As KWOK's --config reads it. */
export const KWOK_STAGES = stages
  .map(({ name, kind, when, next }) =>
    JSON.stringify({
      apiVersion: "kwok.x-k8s.io/v1alpha1",
      kind: "Stage",
      metadata: { name },
      spec: { resourceRef: { apiGroup: "v1", kind }, selector: { matchExpressions: when }, next },
    }),
  )
  .join("\n---\n");
