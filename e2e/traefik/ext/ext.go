// Package ext stands in for a module that Traefik 3.7 keeps inside its own, where the module's zip leaves it out.
package ext

// HTTP extends nothing.
type HTTP struct{}

// DeepCopyInto copies nothing.
func (*HTTP) DeepCopyInto(*HTTP) {}

// Router extends nothing.
type Router struct{}

// DeepCopyInto copies nothing.
func (*Router) DeepCopyInto(*Router) {}
