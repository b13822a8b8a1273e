package rig

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
)

// KeyLength is the setting of a site's middleware as Traefik runs it.
func KeyLength(t *testing.T, p *hosts.Process, site string) int {
	t.Helper()
	var middleware struct {
		Plugin struct {
			Idem struct {
				MaxKeyLength string `json:"maxKeyLength"`
			} `json:"idem"`
		} `json:"plugin"`
	}
	err := json.Unmarshal([]byte(get(t, fmt.Sprintf("%s/api/http/middlewares/%s-0@file", p.API, site))), &middleware)
	if err != nil {
		t.Fatal(err)
	}
	n, _ := strconv.Atoi(middleware.Plugin.Idem.MaxKeyLength)
	return n
}

// OpenStats are the settings that show the statistics to everybody.
var OpenStats = hosts.Settings{"stats": map[string]any{"insecure": true}}

// Get is a GET request without a key.
func Get(path string) Call { return Call{Method: http.MethodGet, Path: path, Header: http.Header{}} }

// Figures are stats.json.
type Figures struct {
	GeneratedAt, Since, LastDuplicate string
	Totals                            map[string]int64
	Endpoints                         []struct {
		Method, Host, Path, LastDuplicate string
		Duplicates                        int64
	}
	OtherDuplicates int64
	Minutes, Hours  []int64
	Memory          struct {
		Bytes, AtLeast int64
		Exact, Warning bool
		Sampled        float64
		MeasuredAt     string
	}
	Store struct {
		Kind, Error string
		Healthy     bool
	}
	Settings map[string]string
}

// Stats reads the statistics.
func (s *Site) Stats() Figures {
	s.T.Helper()
	a := s.Do(Get("/_idem/stats.json"))
	if a.Status != 200 || a.Header.Get("Content-Type") != "application/json" || a.Header.Get("Cache-Control") != "no-store" {
		s.T.Fatalf("stats.json: %d %v\n%s", a.Status, a.Header, a.Body)
	}
	var f Figures
	err := json.Unmarshal(a.Body, &f)
	if err != nil {
		s.T.Fatalf("stats.json: %v\n%s", err, a.Body)
	}
	return f
}

// Counted waits until done is true of the statistics. What never comes ends in the test's time-out.
func (s *Site) Counted(done func(f Figures) bool) Figures {
	s.T.Helper()
	f := s.Stats()
	for !done(f) {
		time.Sleep(20 * time.Millisecond)
		f = s.Stats()
	}
	return f
}
