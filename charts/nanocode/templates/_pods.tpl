{{/* What the pods have in common: all of them pass the restricted Pod Security Standard. */}}

{{- define "nanocode.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "nanocode.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Ordinary nodes: no accelerators; a dict of root and `spot`, whether spot nodes will do. */}}
{{- define "nanocode.ordinaryNodes" -}}
{{- with .root.Values.ordinaryNodes.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .root.Values.ordinaryNodes.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - {key: cloud.google.com/gke-tpu-accelerator, operator: DoesNotExist}
            {{- if not .spot }}
            - {key: cloud.google.com/gke-spot, operator: DoesNotExist}
            {{- end }}
{{- end -}}

{{/* A small pod of the release: the controller, its end, its check. A dict of root, name, account and args, and
     `tokenless` for one that does not speak to the API server. */}}
{{- define "nanocode.controllerPod" -}}
serviceAccountName: {{ .account }}
automountServiceAccountToken: {{ not .tokenless }}
enableServiceLinks: false
securityContext:
  {{- include "nanocode.podSecurity" .root | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- include "nanocode.ordinaryNodes" (dict "root" .root "spot" false) | nindent 0 }}
containers:
  - name: {{ .name }}
    image: {{ include "nanocode.controllerImage" .root }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    args: {{ toJson .args }}
    env:
      {{- range $name, $value := merge (dict) .root.Values.extraEnv (dict "HOME" "/tmp" "PYTHONUNBUFFERED" "1") }}
      - {name: {{ $name }}, value: {{ $value | quote }}}
      {{- end }}
    {{- with .ports }}
      - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    ports: {{ toJson . }}
    {{- end }}
    {{- with .probes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    resources: {{ toJson .root.Values.controller.resources }}
    securityContext:
      {{- include "nanocode.containerSecurity" .root | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      {{- if .root.Values.soul }}
      - {name: soul, mountPath: /etc/nanocode, readOnly: true}
      {{- end }}
volumes:
  - name: tmp
    emptyDir: {sizeLimit: 512Mi}
  {{- if .root.Values.soul }}
  - name: soul
    configMap: {name: {{ include "nanocode.soulName" .root }}}
  {{- end }}
{{- end -}}
