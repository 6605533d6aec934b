"""The resource `DistillationChain`: its spec, its status and the CRD generated from both."""
