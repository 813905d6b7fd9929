{{/* Names and labels. A release is a run, and all that is its own begins with its name. */}}

{{- define "nanocode.run" -}}
{{- if gt (len .Release.Name) 24 -}}
{{- $why := "choose one of at most 24, because pods' names begin with it" -}}
{{- fail (printf "the release's name %q has %d characters: %s" .Release.Name (len .Release.Name) $why) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" .Release.Name) -}}
{{- $why := "choose lower-case letters, digits and dashes, a letter first" -}}
{{- fail (printf "the release's name %q cannot begin the names of Services: %s" .Release.Name $why) -}}
{{- end -}}
{{- .Release.Name -}}
{{- end -}}

{{/* What every object of the run carries, made by the chart or by the controller. */}}
{{- define "nanocode.runLabels" -}}
app.kubernetes.io/name: nanocode
app.kubernetes.io/instance: {{ include "nanocode.run" . | quote }}
nanocode.dev/run: {{ include "nanocode.run" . | quote }}
{{- end -}}

{{- define "nanocode.labels" -}}
{{ include "nanocode.runLabels" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "nanocode.controllerLabels" -}}
app.kubernetes.io/name: nanocode
app.kubernetes.io/instance: {{ include "nanocode.run" . | quote }}
app.kubernetes.io/component: controller
{{- end -}}

{{- define "nanocode.runDirectory" -}}
{{- if not .Values.bucket -}}{{- fail "bucket is not set: give --set bucket=gs://NAME" -}}{{- end -}}
{{- printf "%s/%s" (trimSuffix "/" .Values.bucket) (default (include "nanocode.run" .) (trimAll "/" .Values.runPath)) -}}
{{- end -}}

{{- define "nanocode.image" -}}
{{- if not .Values.image.repository -}}
{{- fail "image.repository is not set: give --set image.repository=REGISTRY/jobs-tpu, as `make push` names it" -}}
{{- end -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "nanocode.controllerImage" -}}
{{- if not .Values.image.controllerRepository -}}
{{- fail "image.controllerRepository is not set: give --set image.controllerRepository=REGISTRY/controller" -}}
{{- end -}}
{{- printf "%s:%s" .Values.image.controllerRepository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}

{{/* Named by its content: an attempt's SOUL never changes under it. */}}
{{- define "nanocode.soulName" -}}
{{- printf "%s-soul-%s" (include "nanocode.run" .) (sha256sum .Values.soul | trunc 8) -}}
{{- end -}}

{{- define "nanocode.templatesName" -}}
{{- printf "%s-templates-%s" (include "nanocode.run" .) (include "nanocode.templates" . | sha256sum | trunc 8) -}}
{{- end -}}

{{/* A name for what has no namespace. */}}
{{- define "nanocode.clusterName" -}}
{{- printf "nanocode-%s-%s-nodes" .Release.Namespace (include "nanocode.run" .) -}}
{{- end -}}
