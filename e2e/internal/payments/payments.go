// Package payments is the sample backend of the demo and the examples: a service that must not be called twice.
package payments

import (
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Service is the backend.
type Service struct {
	http.Handler

	mu       sync.Mutex // guards everything below
	calls    int
	payments []payment
}

type payment struct {
	ID      string      `json:"id"`
	Amount  json.Number `json:"amount"`
	Created time.Time   `json:"created"`
}

// Handler returns a new service. GET / tells how often it was called to pay, which takes a POST to /api/payments/.
func Handler() *Service {
	mux := http.NewServeMux()
	b := &Service{Handler: mux}
	mux.HandleFunc("GET /{$}", b.page)
	mux.HandleFunc("POST /api/payments/{$}", b.pay)
	return b
}

// Calls is how often it was called to pay.
func (b *Service) Calls() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls
}

// pay creates a payment, which takes a second.
func (b *Service) pay(w http.ResponseWriter, r *http.Request) {
	var p payment
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&p)
	b.mu.Lock()
	b.calls++
	call := b.calls
	b.mu.Unlock()
	log.Printf("backend: call %d  %s %s amount %s", call, r.Method, r.URL.Path, p.Amount)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	time.Sleep(time.Second)
	p.ID = "pay-" + strconv.Itoa(call)
	p.Created = time.Now().Round(time.Millisecond)
	b.mu.Lock()
	b.payments = append(b.payments, p)
	b.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(p) // a client that has gone needs no answer
}

// page tells how often the backend was really called.
func (b *Service) page(w http.ResponseWriter, _ *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var text strings.Builder
	fmt.Fprintf(&text, "calls of the backend: %d\n", b.calls)
	const shown = 10
	for i := len(b.payments) - 1; i >= 0 && i >= len(b.payments)-shown; i-- {
		p := b.payments[i]
		fmt.Fprintf(&text, "%s  %s  amount %s\n", p.Created.Format(time.TimeOnly), p.ID, p.Amount)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte(text.String())) // likewise
}
