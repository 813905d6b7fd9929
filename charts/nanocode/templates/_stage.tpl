{{/* The Job and Service of a stage, from which the controller makes every attempt: it sets the names, the attempt's
label and environment, the owner, the image's digest, and the node pool; all else stands here. */}}

{{/* Chips of one host. */}}
{{- define "nanocode.chips" -}}
{{- regexReplaceAll "^.*-([0-9]+)t$" .Values.tpu.machineType "${1}" -}}
{{- end -}}

{{/* Chips of a slice. */}}
{{- define "nanocode.sliceChips" -}}
{{- $chips := 1 -}}
{{- range splitList "x" .Values.tpu.topology }}{{ $chips = mul $chips (atoi .) }}{{ end -}}
{{- $chips -}}
{{- end -}}

{{/* Hosts of a slice. */}}
{{- define "nanocode.hosts" -}}
{{- if eq .Values.accelerator "tpu" -}}
{{- $chips := atoi (include "nanocode.sliceChips" .) -}}
{{- $each := atoi (include "nanocode.chips" .) -}}
{{- if mod $chips $each -}}
{{- $where := printf "machines of %d (tpu.machineType %s)" $each .Values.tpu.machineType -}}
{{- fail (printf "tpu.topology %s has %d chips, which %s do not make up" .Values.tpu.topology $chips $where) -}}
{{- end -}}
{{- div $chips $each -}}
{{- else if eq .Values.accelerator "nvidia" -}}
{{- .Values.nvidia.hosts -}}
{{- else -}}
1
{{- end -}}
{{- end -}}

{{/* Environment that the chart sets, as JSON: a dict of root, stage and pods. extraEnv wins. */}}
{{- define "nanocode.stageEnv" -}}
{{- $values := .root.Values -}}
{{- $env := dict "HOME" "/tmp" "TMPDIR" "/tmp" "PYTHONUNBUFFERED" "1" "JAX_PLATFORMS" "cpu" -}}
{{- if and (eq .stage.machine "accelerator") (ne $values.accelerator "none") -}}
{{- /* A list: where the first cannot be had, jax ends instead of training on the CPU. */ -}}
{{- $_ := set $env "JAX_PLATFORMS" (ternary "tpu,cpu" "cuda,cpu" (eq $values.accelerator "tpu")) -}}
{{- if $values.compilationCache -}}
{{- $_ := set $env "JAX_COMPILATION_CACHE_DIR" (printf "%s/cache/jax" (trimSuffix "/" $values.bucket)) -}}
{{- end -}}
{{- if and (eq $values.accelerator "tpu") (lt (int .pods) (int (include "nanocode.hosts" .root))) -}}
{{- /* One host of a larger slice: libtpu shall not wait for the others. */ -}}
{{- $bounds := get (dict "1" "1,1,1" "4" "2,2,1" "8" "2,4,1") (include "nanocode.chips" .root) -}}
{{- $_ := set $env "TPU_PROCESS_BOUNDS" "1,1,1" -}}
{{- $_ := set $env "TPU_CHIPS_PER_PROCESS_BOUNDS" $bounds -}}
{{- end -}}
{{- end -}}
{{- if and (eq .stage.machine "accelerator") (gt (int .pods) 1) -}}
{{- $_ := set $env "JAX_NUM_PROCESSES" (toString .pods) -}}
{{- end -}}
{{- merge (dict) $values.extraEnv $env | toJson -}}
{{- end -}}

{{/* Where the pods go: a dict of root, stage and pods. */}}
{{- define "nanocode.stageNodes" -}}
{{- $values := .root.Values -}}
{{- if or (eq .stage.machine "cpu") (eq $values.accelerator "none") -}}
{{- include "nanocode.ordinaryNodes" (dict "root" .root "spot" true) -}}
{{- else -}}
{{- $selector := dict -}}
{{- $taint := "google.com/tpu" -}}
{{- if eq $values.accelerator "tpu" -}}
{{- /* Pools of -8t and -4t machines share their other labels. */ -}}
{{- $_ := set $selector "cloud.google.com/gke-tpu-accelerator" $values.tpu.accelerator -}}
{{- $_ := set $selector "cloud.google.com/gke-tpu-topology" $values.tpu.topology -}}
{{- $_ := set $selector "node.kubernetes.io/instance-type" $values.tpu.machineType -}}
{{- else -}}
{{- $selector = deepCopy $values.nvidia.nodeSelector -}}
{{- $taint = "nvidia.com/gpu" -}}
{{- end -}}
{{- if $values.spot -}}{{- $_ := set $selector "cloud.google.com/gke-spot" "true" -}}{{- end -}}
nodeSelector: {{ toJson $selector }}
tolerations:
  - {key: {{ $taint }}, operator: Exists, effect: NoSchedule}
  {{- if $values.spot }}
  - {key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}
  {{- end }}
{{- $together := and (eq $values.accelerator "tpu") (gt (int .pods) 1) }}
{{- if or $together (not $values.spot) }}
affinity:
  {{- if not $values.spot }}
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - {key: cloud.google.com/gke-spot, operator: DoesNotExist}
  {{- end }}
  {{- if $together }}
  # A pool is a slice: all of a Job's pods into one, and no other Job's beside them.
  podAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: cloud.google.com/gke-nodepool
        labelSelector: {matchExpressions: [{key: nanocode.dev/slice, operator: Exists}]}
        matchLabelKeys: [batch.kubernetes.io/controller-uid]
  podAntiAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: cloud.google.com/gke-nodepool
        labelSelector: {matchExpressions: [{key: nanocode.dev/slice, operator: Exists}]}
        mismatchLabelKeys: [batch.kubernetes.io/controller-uid]
        namespaceSelector: {}
  {{- end }}
{{- end }}
{{- end -}}
{{- end -}}

{{- define "nanocode.stageResources" -}}
{{- $resources := deepCopy .stage.resources -}}
{{- $_ := set $resources.requests "ephemeral-storage" .stage.scratch -}}
{{- if and (eq .stage.machine "accelerator") (eq .root.Values.accelerator "tpu") -}}
{{- $_ := set $resources.limits "google.com/tpu" (include "nanocode.chips" .root) -}}
{{- $_ := set $resources.requests "google.com/tpu" (include "nanocode.chips" .root) -}}
{{- else if and (eq .stage.machine "accelerator") (eq .root.Values.accelerator "nvidia") -}}
{{- $_ := set $resources.limits "nvidia.com/gpu" (toString .root.Values.nvidia.gpus) -}}
{{- $_ := set $resources.requests "nvidia.com/gpu" (toString .root.Values.nvidia.gpus) -}}
{{- end -}}
{{- toJson $resources -}}
{{- end -}}

{{/* A dict of root and name. */}}
{{- define "nanocode.stage" -}}
{{- $root := .root -}}
{{- $values := $root.Values -}}
{{- $stage := get $values.stages .name -}}
{{- $split := hasKey $stage "workers" -}}
{{- $pods := 1 -}}
{{- if $split -}}
{{- $pods = int $stage.workers -}}
{{- else if and (eq $stage.machine "accelerator") (not $stage.oneHost) -}}
{{- $pods = int (include "nanocode.hosts" $root) -}}
{{- end -}}
{{- $secrets := dict -}}
{{- if and $values.secrets.teacherKey (eq .name "synth") -}}
{{- $_ := set $secrets "TEACHER_API_KEY" $values.secrets.teacherKey -}}
{{- end -}}
{{- if and $values.secrets.hfToken (has .name (list "tokenizer" "corpus" "synth")) -}}
{{- $_ := set $secrets "HF_TOKEN" $values.secrets.hfToken -}}
{{- end -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ include "nanocode.run" $root }}-{{ .name }}
  labels:
    {{- include "nanocode.runLabels" $root | nindent 4 }}
    app.kubernetes.io/component: stage
    app.kubernetes.io/managed-by: nanocode
    nanocode.dev/stage: {{ .name }}
    {{- with $values.queueName }}
    kueue.x-k8s.io/queue-name: {{ . | quote }}
    {{- end }}
spec:
  completionMode: Indexed
  completions: {{ $pods }}
  parallelism: {{ $pods }}
  {{- if $values.queueName }}
  suspend: true # Kueue lets it begin
  {{- end }}
  {{- if $split }}
  backoffLimitPerIndex: {{ $stage.retriesPerWorker }}
  maxFailedIndexes: 0
  {{- else }}
  backoffLimit: 0
  {{- end }}
  # The first rule that matches counts. The exit codes are nanocode.run.exits: 2 and 78 are never worth a retry.
  podFailurePolicy:
    rules:
      {{- if $split }}
      - {action: Ignore, onPodConditions: [{type: DisruptionTarget, status: "True"}]}
      - {action: FailJob, onExitCodes: {containerName: stage, operator: In, values: [2, 78]}}
      {{- else }}
      - {action: FailJob, onPodConditions: [{type: DisruptionTarget, status: "True"}]}
      - {action: FailJob, onExitCodes: {containerName: stage, operator: In, values: [2, 75, 78]}}
      {{- end }}
  template:
    metadata:
      labels:
        {{- include "nanocode.runLabels" $root | nindent 8 }}
        app.kubernetes.io/component: stage
        app.kubernetes.io/managed-by: nanocode
        nanocode.dev/stage: {{ .name }}
        {{- if and (eq $stage.machine "accelerator") (gt $pods 1) }}
        nanocode.dev/slice: several-hosts
        {{- end }}
      annotations:
        cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
    spec:
      restartPolicy: Never
      subdomain: {{ include "nanocode.run" $root }}-{{ .name }}
      serviceAccountName: {{ include "nanocode.run" $root }}-trainer
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ $values.terminationGraceSeconds }}
      {{- with $values.image.pullSecrets }}
      imagePullSecrets:
        {{- range . }}
        - name: {{ . }}
        {{- end }}
      {{- end }}
      securityContext:
        {{- include "nanocode.podSecurity" $root | nindent 8 }}
      {{- include "nanocode.stageNodes" (dict "root" $root "stage" $stage "pods" $pods) | nindent 6 }}
      containers:
        - name: stage
          image: {{ include "nanocode.image" $root }}
          imagePullPolicy: {{ $values.image.pullPolicy }}
          args:
            - python
            - -m
            - deploy.local.keeper
            - --run-dir
            - {{ include "nanocode.runDirectory" $root }}
            - --stage
            - {{ .name }}
            - --attempt
            - $(NANOCODE_ATTEMPT)
            - --worker
            - $(JOB_COMPLETION_INDEX)
            - --of
            - {{ $pods | quote }}
          env:
            {{- $env := include "nanocode.stageEnv" (dict "root" $root "stage" $stage "pods" $pods) | fromJson }}
            {{- range $name, $value := $env }}
            - {name: {{ $name }}, value: {{ $value | quote }}}
            {{- end }}
            {{- range $name, $secret := $secrets }}
            - {name: {{ $name }}, valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ $name }}}}}
            {{- end }}
            {{- if and (eq $stage.machine "accelerator") (gt $pods 1) }}
            - name: JAX_PROCESS_ID
              valueFrom: {fieldRef: {fieldPath: "metadata.labels['batch.kubernetes.io/job-completion-index']"}}
            {{- end }}
          resources: {{ include "nanocode.stageResources" (dict "root" $root "stage" $stage) }}
          securityContext:
            {{- include "nanocode.containerSecurity" $root | nindent 12 }}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            - {name: shm, mountPath: /dev/shm}
            {{- if $values.soul }}
            - {name: soul, mountPath: /etc/nanocode, readOnly: true}
            {{- end }}
      volumes:
        - name: tmp
          emptyDir: {sizeLimit: {{ $stage.scratch }}}
        - name: shm
          emptyDir: {medium: Memory, sizeLimit: {{ $stage.sharedMemory }}}
        {{- if $values.soul }}
        - name: soul
          configMap: {name: {{ include "nanocode.soulName" $root }}}
        {{- end }}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ include "nanocode.run" $root }}-{{ .name }}
  labels:
    {{- include "nanocode.runLabels" $root | nindent 4 }}
    app.kubernetes.io/component: stage
    app.kubernetes.io/managed-by: nanocode
    nanocode.dev/stage: {{ .name }}
spec:
  clusterIP: None
  publishNotReadyAddresses: true # hosts look each other up before any of them is ready
  selector:
    nanocode.dev/run: {{ include "nanocode.run" $root | quote }}
    nanocode.dev/stage: {{ .name }}
  ports:
    - {name: coordinator, port: 8482}
{{- end -}}

{{/* Mirrors the log of a stage that runs on TPU VMs; the controller adds names and the attempt. */}}
{{- define "nanocode.bridge" -}}
{{- $run := include "nanocode.run" . -}}
{{- $command := list "python" "-m" "deploy.kubernetes.bridge" "--run-dir" (include "nanocode.runDirectory" .) -}}
{{- $args := concat $command (list "--stage" "$(NANOCODE_STAGE)" "--attempt" "$(NANOCODE_ATTEMPT)") -}}
{{- $account := printf "%s-trainer" $run -}}
{{- $pod := dict "root" . "name" "bridge" "account" $account "args" $args "tokenless" true -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ $run }}-bridge
  labels:
    {{- include "nanocode.runLabels" . | nindent 4 }}
    app.kubernetes.io/component: bridge
    app.kubernetes.io/managed-by: nanocode
spec:
  backoffLimit: 100 # it may come and go: the attempt does not notice
  template:
    metadata:
      labels:
        {{- include "nanocode.runLabels" . | nindent 8 }}
        app.kubernetes.io/component: bridge
        app.kubernetes.io/managed-by: nanocode
    spec:
      restartPolicy: OnFailure
      {{- include "nanocode.controllerPod" $pod | nindent 6 }}
{{- end -}}

{{/* Every stage's documents, by file name, and the bridge's where stages may run on TPU VMs. */}}
{{- define "nanocode.templates" -}}
{{- $root := . -}}
{{- range $name, $_ := .Values.stages }}
{{ $name }}.yaml: |
  {{- include "nanocode.stage" (dict "root" $root "name" $name) | nindent 2 }}
{{- end }}
{{- if has .Values.provisioner (list "queued-resource" "auto") }}
bridge.yaml: |
  {{- include "nanocode.bridge" . | nindent 2 }}
{{- end }}
{{- end -}}
