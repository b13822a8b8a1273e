package main

import (
	"flag"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// callsPath tells how many POST requests the backend has had.
const callsPath = "/calls"

// runBackend is the subcommand backend: a server that takes a body and answers with JSON. It is a process of its own, so
// that its work counts as nobody else's.
func runBackend(args []string) error {
	flags := flag.NewFlagSet("backend", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:0", "`address`")
	size := flags.Int("size", 240, "`bytes` of an answer")
	delay := flags.Duration("delay", 0, "how `long` an answer takes")
	err := flags.Parse(args)
	if err != nil {
		return err
	}
	var calls atomic.Int64
	answer := []byte(`{"pad":"` + strings.Repeat("x", *size-10) + `"}`)
	length := strconv.Itoa(len(answer))
	return http.ListenAndServe(*listen, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			if r.URL.Path == callsPath {
				_, _ = io.WriteString(w, strconv.FormatInt(calls.Load(), 10))
			}
			return
		}
		calls.Add(1)
		_, _ = io.Copy(io.Discard, r.Body)
		time.Sleep(*delay)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", length)
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write(answer)
	}))
}
