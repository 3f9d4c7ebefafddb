{{- define "bonafide.labels" -}}
app.kubernetes.io/part-of: bonafide
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "bonafide.server.selector" -}}
app.kubernetes.io/name: bonafide-server
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "bonafide.agent.selector" -}}
app.kubernetes.io/name: bonafide-agent
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "bonafide.serverAddress" -}}
{{- if .Values.server.enabled -}}
bonafide-server.{{ .Release.Namespace }}.svc:{{ .Values.server.port }}
{{- else -}}
{{ required "agent.serverAddress is required when server.enabled is false" .Values.agent.serverAddress }}
{{- end -}}
{{- end }}
