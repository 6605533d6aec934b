{{- define "distillchain.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "distillchain.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "distillchain.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "distillchain.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "distillchain.operator" -}}
{{ include "distillchain.fullname" . }}-operator
{{- end }}

{{- define "distillchain.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "distillchain.operator" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name: missing, and serviceAccount.create is false; name one that exists" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "distillchain.selectorLabels" -}}
app.kubernetes.io/name: {{ include "distillchain.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "distillchain.labels" -}}
{{ include "distillchain.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The reference of an image. Argument: (dict "image" .Values.image "root" $). A registry that is null is the operator's. */}}
{{- define "distillchain.image" -}}
{{- $name := .image.repository }}
{{- $registry := ternary .root.Values.image.registry .image.registry (kindIs "invalid" .image.registry) }}
{{- with coalesce .root.Values.global.imageRegistry $registry }}
{{- $name = printf "%s/%s" . $name }}
{{- end }}
{{- if .image.digest -}}
{{ $name }}@{{ .image.digest }}
{{- else -}}
{{ $name }}:{{ default .root.Chart.AppVersion .image.tag }}
{{- end }}
{{- end }}

{{/* Pull secrets with those of `global`. Argument: (dict "own" .Values.imagePullSecrets "root" $). */}}
{{- define "distillchain.imagePullSecrets" -}}
{{- $secrets := list }}
{{- range concat (default list .root.Values.global.imagePullSecrets) .own }}
{{- $secrets = append $secrets (ternary (dict "name" .) . (kindIs "string" .)) }}
{{- end }}
{{- with uniq $secrets }}{{ toYaml . }}{{ end }}
{{- end }}

{{- define "distillchain.trainerImage" -}}
{{- if .Values.chains.image.repository }}{{ include "distillchain.image" (dict "image" .Values.chains.image "root" .) }}{{ end }}
{{- end }}

{{- define "distillchain.podSecurityContext" -}}
{{- $context := deepCopy .Values.podSecurityContext }}
{{- if .Values.openshift }}{{ $context = omit $context "runAsUser" "runAsGroup" "fsGroup" }}{{ end }}
{{- toYaml $context }}
{{- end }}

{{/* The rules for everything that the operator calls, and for nothing else. */}}
{{- define "distillchain.rules" -}}
- {apiGroups: [distillchain.io], resources: [distillationchains], verbs: [get, list, watch]}
- {apiGroups: [distillchain.io], resources: [distillationchains/status], verbs: [patch]}
# A Job has its chain as owner, with blockOwnerDeletion. If the admission plugin OwnerReferencesPermissionEnforcement is
# enabled, that needs this permission.
- {apiGroups: [distillchain.io], resources: [distillationchains/finalizers], verbs: [update]}
- {apiGroups: [batch], resources: [jobs], verbs: [get, list, watch, create, patch, delete]}
# `create` is only for server-side dry runs. The Job controller creates the pods.
- {apiGroups: [""], resources: [pods], verbs: [list, watch, create]}
- {apiGroups: [""], resources: [pods/log], verbs: [get]}
# The pods of a stage on several nodes find each other by a Service, and a NetworkPolicy keeps others away from them. The
# garbage collector deletes both with the Job.
- {apiGroups: [""], resources: [services], verbs: [list, create]}
{{- if .Values.chains.networkPolicies }}
- {apiGroups: [networking.k8s.io], resources: [networkpolicies], verbs: [list, create]}
{{- end }}
- {apiGroups: [events.k8s.io], resources: [events], verbs: [create]}
{{- end }}

{{/* "true" if the operator watches only its own namespace. */}}
{{- define "distillchain.watchesItself" -}}
{{- if and (eq (len .Values.watchNamespaces) 1) (eq (first .Values.watchNamespaces) .Release.Namespace) }}true{{ end }}
{{- end }}

{{/* The PodTemplateSpec over which the `pod` of a stage is merged. Empty if no value sets one. */}}
{{- define "distillchain.podTemplate" -}}
{{- $given := .Values.chains }}
{{- $template := deepCopy $given.podTemplate }}
{{- $spec := deepCopy (default dict $template.spec) }}
{{- with $given.serviceAccountName }}{{ $spec = merge $spec (dict "serviceAccountName" .) }}{{ end }}
{{- with include "distillchain.imagePullSecrets" (dict "own" $given.imagePullSecrets "root" .) }}
{{- $spec = merge $spec (dict "imagePullSecrets" (fromYamlArray .)) }}
{{- end }}
{{- if .Values.openshift }}
{{- $context := deepCopy (default dict $spec.securityContext) }}
{{- range list "runAsUser" "runAsGroup" "fsGroup" }}
{{- if not (hasKey $context .) }}{{ $_ := set $context . nil }}{{ end }}
{{- end }}
{{- $_ := set $spec "securityContext" $context }}
{{- end }}
{{- $env := list }}
{{- with $given.storage.endpointUrl }}{{ $env = append $env (dict "name" "AWS_ENDPOINT_URL_S3" "value" .) }}{{ end }}
{{- with $given.storage.region }}{{ $env = append $env (dict "name" "AWS_REGION" "value" .) }}{{ end }}
{{- range tuple "HTTP_PROXY" "HTTPS_PROXY" "NO_PROXY" }}
{{- $value := get (dict "HTTP_PROXY" $given.proxy.http "HTTPS_PROXY" $given.proxy.https "NO_PROXY" $given.proxy.noProxy) . }}
{{- /* Some libraries read the one spelling, and some the other. */}}
{{- if $value }}{{ $env = concat $env (list (dict "name" . "value" $value) (dict "name" (lower .) "value" $value)) }}{{ end }}
{{- end }}
{{- $mounts := list }}
{{- with $given.caBundle.configMap }}
{{- $bundle := printf "/etc/distillchain-ca/%s" $given.caBundle.key }}
{{- /* Of boto3, of the hub's client, and of requests. */}}
{{- range list "AWS_CA_BUNDLE" "SSL_CERT_FILE" "REQUESTS_CA_BUNDLE" }}
{{- $env = append $env (dict "name" . "value" $bundle) }}
{{- end }}
{{- $mounts = list (dict "name" "distillchain-ca" "mountPath" "/etc/distillchain-ca" "readOnly" true) }}
{{- $volume := dict "name" "distillchain-ca" "configMap" (dict "name" .) }}
{{- $_ := set $spec "volumes" (append (default list $spec.volumes) $volume) }}
{{- end }}
{{- $env = concat $given.env $env }}
{{- if or $env $given.resources $given.image.pullPolicy }}
{{- $trainer := dict "name" "trainer" }}
{{- $others := list }}
{{- range default list $spec.containers }}
{{- if eq .name "trainer" }}{{ $trainer = deepCopy . }}{{ else }}{{ $others = append $others . }}{{ end }}
{{- end }}
{{- $stated := list }}
{{- range default list $trainer.env }}{{ $stated = append $stated .name }}{{ end }}
{{- $all := default list $trainer.env }}
{{- range $env }}
{{- if not (has .name $stated) }}{{ $all = append $all . }}{{ $stated = append $stated .name }}{{ end }}
{{- end }}
{{- if $all }}{{ $_ := set $trainer "env" $all }}{{ end }}
{{- with $mounts }}{{ $_ := set $trainer "volumeMounts" (concat (default list $trainer.volumeMounts) .) }}{{ end }}
{{- with $given.resources }}{{ $trainer = merge $trainer (dict "resources" .) }}{{ end }}
{{- with $given.image.pullPolicy }}{{ $trainer = merge $trainer (dict "imagePullPolicy" .) }}{{ end }}
{{- $_ := set $spec "containers" (prepend $others $trainer) }}
{{- end }}
{{- if $spec }}{{ $_ := set $template "spec" $spec }}{{ end }}
{{- if $template }}{{ toYaml $template }}{{ end }}
{{- end }}

{{/* The namespace of the chain of `helm test`. The operator must watch it. */}}
{{- define "distillchain.testNamespace" -}}
{{- if and .Values.watchNamespaces (not (has .Release.Namespace .Values.watchNamespaces)) }}
{{- first .Values.watchNamespaces }}
{{- else }}
{{- .Release.Namespace }}
{{- end }}
{{- end }}

{{/* Metadata of an object of `helm test`, which is a hook. Argument: (dict "root" $ "name" "..." "namespace" "..."), and its
"weight" (default: before the others). All hooks have the same name, because `helm test --logs` requests a pod with the name of each hook. */}}
{{- define "distillchain.testMetadata" -}}
name: {{ .name }}
namespace: {{ .namespace }}
labels:
  {{- include "distillchain.labels" .root | replace "component: operator" "component: test" | nindent 2 }}
annotations:
  helm.sh/hook: test
  helm.sh/hook-weight: {{ default -1 .weight | quote }}
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/* Argo CD: sync although the CRD of the object does not exist yet. */}}
{{- define "distillchain.skipDryRun" -}}
argocd.argoproj.io/sync-options: SkipDryRunOnMissingResource=true
{{- end }}
