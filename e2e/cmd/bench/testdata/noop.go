// Package noop is the least that a plugin can do: it calls the next handler.
package noop

import (
	"context"
	"net/http"
)

// Config is empty.
type Config struct{}

// CreateConfig returns a Config.
func CreateConfig() *Config { return &Config{} }

type handler struct{ next http.Handler }

// New returns a handler that calls next.
func New(_ context.Context, next http.Handler, _ *Config, _ string) (http.Handler, error) {
	return &handler{next: next}, nil
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.next.ServeHTTP(w, r) }
