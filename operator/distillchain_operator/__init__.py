"""The operator: plan -> reconcile -> Kubernetes. Knows no model and no store."""
