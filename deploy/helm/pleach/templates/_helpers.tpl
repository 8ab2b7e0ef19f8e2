{{- define "pleach.fullname" -}}
{{- /* 52: what Kubernetes and this chart put behind it must fit into 63. */ -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains "pleach" .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-pleach" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "pleach.selector" -}}
app.kubernetes.io/name: pleach
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "pleach.labels" -}}
{{ include "pleach.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "pleach.headless" -}}
{{ include "pleach.fullname" . }}-headless
{{- end -}}

{{- define "pleach.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "pleach.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "pleach.image" -}}
{{- $repository := required "image.repository is needed: no image is published; build deploy/Containerfile and push it" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- /* The topology's text; nothing where there is none. */ -}}
{{- define "pleach.topology" -}}
{{- if kindIs "string" .Values.topology -}}
{{- .Values.topology -}}
{{- else if .Values.topology -}}
{{- toYaml .Values.topology -}}
{{- end -}}
{{- end -}}

{{- define "pleach.tlsSecret" -}}
{{- .Values.tls.secretName | default (printf "%s-tls" (include "pleach.fullname" .)) -}}
{{- end -}}

{{- /* What no schema can say of values that depend on each other. */ -}}
{{- define "pleach.check" -}}
{{- $topology := include "pleach.topology" . -}}
{{- if and $topology .Values.topologySecret.name -}}
{{- fail "topology and topologySecret.name: give one of them" -}}
{{- end -}}
{{- if and .Values.endpoint .Values.endpointSecret.name -}}
{{- fail "endpoint and endpointSecret.name: give one of them" -}}
{{- end -}}
{{- $password := "://[^/@\\s:]+:[^@\\s]+@|[?&\\s]password=" -}}
{{- if regexMatch $password $topology -}}
{{- fail "topology holds a password, and would lie in a ConfigMap: make a Secret of the file, and name it in topologySecret" -}}
{{- end -}}
{{- if regexMatch $password .Values.endpoint -}}
{{- fail "endpoint holds a password, and would be an argument of the pod: put it into a Secret, and name it in endpointSecret" -}}
{{- end -}}
{{- $hasStore := or .Values.endpoint .Values.endpointSecret.name .Values.topologySecret.name (regexMatch "(?m)^default:" $topology) -}}
{{- if not (or .Values.persistence.enabled .Values.persistence.existingClaim $hasStore) -}}
{{- fail "persistence.enabled is false, and nothing names another default store: all keys would end with the pod" -}}
{{- end -}}
{{- if .Values.tls.enabled -}}
{{- if not (or .Values.tls.secretName .Values.tls.certManager.enabled) -}}
{{- fail "tls.enabled needs tls.secretName or tls.certManager.enabled" -}}
{{- end -}}
{{- else if or .Values.tls.clientAuth.enabled .Values.tls.certManager.enabled -}}
{{- fail "tls.clientAuth and tls.certManager need tls.enabled" -}}
{{- end -}}
{{- if eq (int .Values.service.port) (int .Values.metrics.port) -}}
{{- fail "service.port and metrics.port must differ" -}}
{{- end -}}
{{- end -}}
