// Package storetest is the one suite that every store of keys has to pass.
package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/store"
)

// Subject is an empty store under test: the steps of a key's life as package store tells of them.
type Subject struct {
	Claim   func(l *store.Lease, d time.Duration) (*store.Held, error) // nil: the lease has the key
	Renew   func(l *store.Lease, d time.Duration) (bool, error)        // nil for a store that dies with its owners, and loses no lease
	Finish  func(l *store.Lease, record string, ttl time.Duration) (bool, error)
	Release func(l *store.Lease) (bool, error)
	Wait    func(ctx context.Context, key string, attempt int) // returns when it is worth while to claim again
	Pass    func(d time.Duration)                              // lets so much of the store's time pass

	// What an operator does. Look tells what has a key, nil if it is free. Settle replaces that by record for ttl, or frees the key if
	// record is empty; it returns false, and changes nothing, if the key has something else by now.
	Look   func(key string) (*redisclient.Seen, error)
	Settle func(key string, seen *redisclient.Seen, record string, ttl time.Duration) (bool, error)
}

// Memory is m as a subject.
func Memory(m *store.Memory, pass func(d time.Duration)) Subject {
	return Subject{
		Claim: func(l *store.Lease, d time.Duration) (*store.Held, error) { return store.Claim(m, l, d), nil },
		Finish: func(l *store.Lease, record string, ttl time.Duration) (bool, error) {
			return store.Finish(m, l, record, ttl, true), nil
		},
		Release: func(l *store.Lease) (bool, error) { return store.Release(m, l), nil },
		Wait:    func(ctx context.Context, key string, _ int) { store.Wait(ctx, m, key) },
		Pass:    pass,
		Look: func(key string) (*redisclient.Seen, error) {
			held := store.Lookup(m, key)
			if held == nil {
				return nil, nil
			}
			return &redisclient.Seen{Held: *held, Version: store.Version(held.Record)}, nil
		},
		Settle: func(key string, seen *redisclient.Seen, record string, ttl time.Duration) (bool, error) {
			return store.Settle(m, key, seen.Version, record, ttl), nil
		},
	}
}

// Redis is k as a subject.
func Redis(k *redisclient.Keys, pass func(d time.Duration)) Subject {
	return Subject{
		Claim: func(l *store.Lease, d time.Duration) (*store.Held, error) { return redisclient.Claim(k, l, d) },
		Renew: func(l *store.Lease, d time.Duration) (bool, error) { return redisclient.Renew(k, l, d) },
		Finish: func(l *store.Lease, record string, ttl time.Duration) (bool, error) {
			return redisclient.Finish(k, l, record, ttl)
		},
		Release: func(l *store.Lease) (bool, error) { return redisclient.Release(k, l) },
		Wait:    func(ctx context.Context, _ string, attempt int) { store.Poll(ctx, attempt) },
		Pass:    pass,
		Look:    func(key string) (*redisclient.Seen, error) { return redisclient.Look(k, Hash(key)) },
		Settle: func(key string, seen *redisclient.Seen, record string, ttl time.Duration) (bool, error) {
			if record == "" {
				return redisclient.Free(k, Hash(key), seen, strconv.FormatInt(nonces.Add(1), 10))
			}
			return redisclient.Answer(k, Hash(key), seen, record, ttl)
		},
	}
}

// nonces makes records of freed keys that are the only ones of their kind.
var nonces atomic.Int64

// Hash is what Redis knows of a key.
func Hash(key string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(key))) }

// long is a time that does not pass in a test, short one that Pass is asked for.
const (
	long  = time.Hour
	short = 5 * time.Second
)

var (
	fingerprint = strings.Repeat("\x00a\xff|", store.FingerprintSize/4)
	another     = strings.Repeat("other...", store.FingerprintSize/8)
)

// Run runs the suite. newSubject is called for every test.
func Run(t *testing.T, newSubject func(t *testing.T) Subject) {
	tests := []struct {
		name string
		run  func(t *testing.T, s Subject)
	}{
		{"a free key is claimed", func(t *testing.T, s Subject) {
			held := claim(t, s, lease("k", "a"), long)
			claimed(t, held)
		}},
		{"a running key tells its fingerprint", func(t *testing.T, s Subject) {
			claim(t, s, lease("k", "a"), long)
			other := lease("k", "b")
			other.Fingerprint = another
			held := claim(t, s, other, long)
			wantState(t, held, store.Running)
			if held.Fingerprint != fingerprint {
				t.Errorf("fingerprint %q, want that of the owner %q", held.Fingerprint, fingerprint)
			}
			if held.Left <= 0 || held.Left > long {
				t.Errorf("left %s, want up to %s", held.Left, long)
			}
		}},
		{"a claim sent twice is one claim", func(t *testing.T, s Subject) {
			claim(t, s, lease("k", "a"), long)
			claimed(t, claim(t, s, lease("k", "a"), long))
		}},
		{"a claim sent again is written again", func(t *testing.T, s Subject) {
			claim(t, s, lease("k", "a"), short)
			claimed(t, claim(t, s, lease("k", "a"), long))
			s.Pass(short)
			wantState(t, claim(t, s, lease("k", "b"), long), store.Running)
		}},
		{"keys do not touch each other", func(t *testing.T, s Subject) {
			claim(t, s, lease("k", "a"), long)
			claimed(t, claim(t, s, lease("l", "b"), long))
		}},
		{"an answer is kept exactly", func(t *testing.T, s Subject) {
			for i, answer := range answers() {
				key := "k" + strconv.Itoa(i)
				claim(t, s, lease(key, "a"), long)
				finish(t, s, lease(key, "a"), Record(fingerprint, answer), true)
				held := claim(t, s, lease(key, "b"), long)
				wantState(t, held, store.Done)
				if held.Fingerprint != fingerprint {
					t.Errorf("fingerprint %q, want %q", held.Fingerprint, fingerprint)
				}
				if !reflect.DeepEqual(held.Answer, answer) {
					t.Errorf("answer %d came back as %+v, want %+v", i, held.Answer, answer)
				}
			}
		}},
		{"an unknown outcome is kept", func(t *testing.T, s Subject) {
			claim(t, s, lease("k", "a"), long)
			finish(t, s, lease("k", "a"), fmt.Sprintf(store.UnknownFormat, fingerprint, "a"), true)
			held := claim(t, s, lease("k", "b"), long)
			wantState(t, held, store.Unknown)
			if held.Left <= 0 || held.Left > long {
				t.Errorf("left %s, want up to %s", held.Left, long)
			}
		}},
		{"an answer that was not kept leaves its status", func(t *testing.T, s Subject) {
			claim(t, s, lease("k", "a"), long)
			finish(t, s, lease("k", "a"), fmt.Sprintf(store.UnkeptFormat, fingerprint, 201, "a"), true)
			held := claim(t, s, lease("k", "b"), long)
			wantState(t, held, store.Unkept)
			if held.Answer.Status != 201 {
				t.Errorf("status %d, want 201", held.Answer.Status)
			}
		}},
		{"a released key is free", func(t *testing.T, s Subject) {
			claim(t, s, lease("k", "a"), long)
			want(t, "release", true, func() (bool, error) { return s.Release(lease("k", "a")) })
			if s.Renew != nil { // a connection can break before the reply comes
				want(t, "release again", true, func() (bool, error) { return s.Release(lease("k", "a")) })
			}
			claimed(t, claim(t, s, lease("k", "b"), long))
			want(t, "release of what another has", false, func() (bool, error) { return s.Release(lease("k", "a")) })
		}},
		{"who is not the owner changes nothing", func(t *testing.T, s Subject) {
			claim(t, s, lease("k", "a"), long)
			fenced(t, s, lease("k", "b"))
			claimed(t, claim(t, s, lease("k", "a"), long))
		}},
		{"a lease ends, and its owner changes nothing any more", func(t *testing.T, s Subject) {
			claim(t, s, lease("k", "a"), short)
			s.Pass(short)
			if s.Renew == nil {
				fenced(t, s, lease("k", "a"))
			}
			claimed(t, claim(t, s, lease("k", "b"), long))
			fenced(t, s, lease("k", "a"))
			claimed(t, claim(t, s, lease("k", "b"), long))
		}},
		{"a lease that is gone is claimed again if nobody has it", func(t *testing.T, s Subject) {
			if s.Renew == nil {
				return
			}
			claim(t, s, lease("k", "a"), short)
			s.Pass(short)
			want(t, "renew", true, func() (bool, error) { return s.Renew(lease("k", "a"), long) })
			wantState(t, claim(t, s, lease("k", "b"), long), store.Running)
			fenced(t, s, lease("k", "b"))
			finish(t, s, lease("k", "a"), done("yes"), true)
			wantState(t, claim(t, s, lease("k", "b"), long), store.Done)
		}},
		{"a request that ends when its lease is gone is kept if nobody has it", func(t *testing.T, s Subject) {
			if s.Renew == nil {
				return
			}
			claim(t, s, lease("k", "a"), short)
			s.Pass(short)
			finish(t, s, lease("k", "a"), done("yes"), true)
			wantState(t, claim(t, s, lease("k", "b"), long), store.Done)
		}},
		{"a finished key is not taken back by its owner", func(t *testing.T, s Subject) {
			claim(t, s, lease("k", "a"), long)
			finish(t, s, lease("k", "a"), done("yes"), true)
			if s.Renew != nil {
				want(t, "renew", false, func() (bool, error) { return s.Renew(lease("k", "a"), long) })
			}
			want(t, "release", false, func() (bool, error) { return s.Release(lease("k", "a")) })
			wantState(t, claim(t, s, lease("k", "b"), long), store.Done)
		}},
		{"a renewed lease goes on", func(t *testing.T, s Subject) {
			if s.Renew == nil {
				return
			}
			claim(t, s, lease("k", "a"), short)
			want(t, "renew", true, func() (bool, error) { return s.Renew(lease("k", "a"), long) })
			s.Pass(short)
			wantState(t, claim(t, s, lease("k", "b"), long), store.Running)
			finish(t, s, lease("k", "a"), done("late"), true)
		}},
		{"an answer expires", func(t *testing.T, s Subject) {
			claim(t, s, lease("k", "a"), long)
			want(t, "finish", true, func() (bool, error) { return s.Finish(lease("k", "a"), done("old"), short) })
			wantState(t, claim(t, s, lease("k", "b"), long), store.Done)
			s.Pass(short)
			claimed(t, claim(t, s, lease("k", "c"), long))
		}},
		{"of many claims at once one is granted", func(t *testing.T, s Subject) {
			for round := 0; round < 20; round++ {
				key := "k" + strconv.Itoa(round)
				states := make([]store.State, 32)
				var wg sync.WaitGroup
				for i := range states {
					wg.Add(1)
					go func(i int) {
						defer wg.Done()
						held, err := s.Claim(lease(key, strconv.Itoa(i)), long)
						switch {
						case err != nil:
							states[i] = store.Unknown
						case held != nil:
							states[i] = held.State
						}
					}(i)
				}
				wg.Wait()
				granted := 0
				for i, state := range states {
					switch state {
					case store.Free:
						granted++
					case store.Running:
					default:
						t.Errorf("claim %d: state %q", i, state)
					}
				}
				if granted != 1 {
					t.Fatalf("round %d: %d claims granted, want 1", round, granted)
				}
			}
		}},
		{"waiting ends with the request or the context", func(t *testing.T, s Subject) {
			claim(t, s, lease("k", "a"), long)
			ctx, cancel := context.WithCancel(context.Background())
			waited := make(chan store.State)
			go func() {
				for attempt := 0; ; attempt++ {
					s.Wait(context.Background(), "k", attempt)
					held, err := s.Claim(lease("k", "b"), long)
					if err != nil || held == nil || held.State != store.Running {
						waited <- stateOf(held)
						return
					}
				}
			}()
			gone := make(chan struct{})
			go func() {
				s.Wait(ctx, "k", 99)
				close(gone)
			}()
			cancel()
			<-gone
			finish(t, s, lease("k", "a"), done("yes"), true)
			if state := <-waited; state != store.Done {
				t.Errorf("the waiter found %q, want %q", state, store.Done)
			}
		}},
		{"a key is freed by hand, and its owner changes nothing", func(t *testing.T, s Subject) {
			for i, record := range []string{done("yes"), fmt.Sprintf(store.UnknownFormat, fingerprint, "a"), fmt.Sprintf(store.UnkeptFormat, fingerprint, 201, "a")} {
				key := "k" + strconv.Itoa(i)
				claim(t, s, lease(key, "a"), long)
				finish(t, s, lease(key, "a"), record, true)
				seen := look(t, s, key)
				want(t, "freeing", true, func() (bool, error) { return s.Settle(key, seen, "", long) })
				fenced(t, s, lease(key, "a"))
				if after := look(t, s, key); after != nil {
					t.Errorf("a freed key is %q", after.State)
				}
				claimed(t, claim(t, s, lease(key, "b"), long))
				want(t, "freeing what was seen before", false, func() (bool, error) { return s.Settle(key, seen, "", long) })
				finish(t, s, lease(key, "b"), done("again"), true)
				wantState(t, claim(t, s, lease(key, "c"), long), store.Done)
			}
		}},
		{"a freed key is like any other when its record would have ended", func(t *testing.T, s Subject) {
			claim(t, s, lease("k", "a"), long)
			want(t, "finish", true, func() (bool, error) { return s.Finish(lease("k", "a"), done("yes"), short) })
			seen := look(t, s, "k")
			want(t, "freeing", true, func() (bool, error) { return s.Settle("k", seen, "", long) })
			s.Pass(short)
			claimed(t, claim(t, s, lease("k", "b"), long))
			finish(t, s, lease("k", "b"), done("again"), true)
		}},
		{"an unknown outcome is answered by hand", func(t *testing.T, s Subject) {
			claim(t, s, lease("k", "a"), long)
			want(t, "finish", true, func() (bool, error) {
				return s.Finish(lease("k", "a"), fmt.Sprintf(store.UnknownFormat, fingerprint, "a"), short)
			})
			seen := look(t, s, "k")
			want(t, "answering", true, func() (bool, error) { return s.Settle("k", seen, done("by hand"), long) })
			fenced(t, s, lease("k", "a"))
			s.Pass(short)
			held := claim(t, s, lease("k", "b"), long)
			wantState(t, held, store.Done)
			if held.Answer.Body != "by hand" || held.Fingerprint != fingerprint {
				t.Errorf("the answer is %q for %q", held.Answer.Body, held.Fingerprint)
			}
		}},
		{"what has ended is not settled", func(t *testing.T, s Subject) {
			claim(t, s, lease("k", "a"), long)
			want(t, "finish", true, func() (bool, error) { return s.Finish(lease("k", "a"), done("yes"), short) })
			seen := look(t, s, "k")
			s.Pass(short)
			for _, record := range []string{"", done("by hand")} {
				want(t, "settling", false, func() (bool, error) { return s.Settle("k", seen, record, long) })
			}
			claimed(t, claim(t, s, lease("k", "b"), long))
		}},
		{"a lease that is renewed is not taken", func(t *testing.T, s Subject) {
			claim(t, s, lease("k", "a"), short)
			seen := look(t, s, "k")
			if s.Renew != nil {
				want(t, "renew", true, func() (bool, error) { return s.Renew(lease("k", "a"), long) })
			}
			want(t, "taking", false, func() (bool, error) { return s.Settle("k", seen, "", long) })
			if s.Renew != nil {
				seen = look(t, s, "k")
				want(t, "taking", true, func() (bool, error) { return s.Settle("k", seen, "", long) })
				want(t, "taking again", true, func() (bool, error) { return s.Settle("k", seen, "", long) })
				claimed(t, claim(t, s, lease("k", "b"), long))
				fenced(t, s, lease("k", "a"))
			}
		}},
		{"of many operators at once one settles", func(t *testing.T, s Subject) {
			for round := 0; round < 20; round++ {
				key := "k" + strconv.Itoa(round)
				claim(t, s, lease(key, "a"), long)
				finish(t, s, lease(key, "a"), fmt.Sprintf(store.UnknownFormat, fingerprint, "a"), true)
				seen := look(t, s, key)
				settled := make([]bool, 16)
				var wg sync.WaitGroup
				for i := range settled {
					wg.Add(1)
					go func(i int) {
						defer wg.Done()
						settled[i], _ = s.Settle(key, seen, done("by hand "+strconv.Itoa(i)), long)
					}(i)
				}
				wg.Wait()
				n, held := 0, claim(t, s, lease(key, "b"), long)
				for i, is := range settled {
					if is {
						n++
						if held.Answer.Body != "by hand "+strconv.Itoa(i) {
							t.Errorf("operator %d has settled it, and the answer is %q", i, held.Answer.Body)
						}
					}
				}
				if n != 1 {
					t.Fatalf("%d operators have settled one key", n)
				}
			}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, newSubject(t)) })
	}
}

// answers are hard to keep: many values, no values, bytes that are no text, statuses of every class.
func answers() []*store.Answer {
	binary := make([]byte, 70000)
	for i := range binary {
		binary[i] = byte(i * 7)
	}
	return []*store.Answer{
		{Status: 200, Header: http.Header{"Content-Type": {"text/plain"}}, Body: "hello"},
		{Status: 204, Header: http.Header{}, Body: ""},
		{Status: 201, Header: http.Header{"Link": {"<a>; rel=b", "<c>; rel=d"}, "X-Empty": {""}, "X-Latin1": {"caf\xe9"}}, Body: string(binary)},
		{Status: 599, Header: http.Header{"X-Colon": {"a: b: c"}}, Body: "\r\n\r\n$5\r\n"},
	}
}

func lease(key, owner string) *store.Lease {
	return &store.Lease{Key: key, Fingerprint: fingerprint, Owner: owner}
}

func done(body string) string {
	return Record(fingerprint, &store.Answer{Status: 200, Body: body})
}

// Record is the record of an answer to the request with this fingerprint.
func Record(fingerprint string, answer *store.Answer) string {
	var header bytes.Buffer
	_ = answer.Header.Write(&header) // a bytes.Buffer takes every write
	return store.DoneHead + fingerprint + store.StatusLines[answer.Status] + header.String() + "\r\n" + answer.Body
}

func claim(t *testing.T, s Subject, l *store.Lease, d time.Duration) *store.Held {
	t.Helper()
	held, err := s.Claim(l, d)
	if err != nil {
		t.Fatalf("claim of %s by %s: %v", l.Key, l.Owner, err)
	}
	return held
}

func look(t *testing.T, s Subject, key string) *redisclient.Seen {
	t.Helper()
	seen, err := s.Look(key)
	if err != nil {
		t.Fatalf("look at %s: %v", key, err)
	}
	return seen
}

func finish(t *testing.T, s Subject, l *store.Lease, record string, kept bool) {
	t.Helper()
	want(t, "finish", kept, func() (bool, error) { return s.Finish(l, record, long) })
}

// fenced checks that no step of l has any effect.
func fenced(t *testing.T, s Subject, l *store.Lease) {
	t.Helper()
	finish(t, s, l, done("wrong"), false)
	if s.Renew != nil {
		want(t, "renew", false, func() (bool, error) { return s.Renew(l, long) })
	}
	want(t, "release", false, func() (bool, error) { return s.Release(l) })
}

func want(t *testing.T, step string, kept bool, do func() (bool, error)) {
	t.Helper()
	got, err := do()
	if err != nil {
		t.Fatalf("%s: %v", step, err)
	}
	if got != kept {
		t.Errorf("%s returned %t, want %t", step, got, kept)
	}
}

func wantState(t *testing.T, held *store.Held, state store.State) {
	t.Helper()
	if stateOf(held) != state {
		t.Fatalf("state %q, want %q", stateOf(held), state)
	}
}

// stateOf is the state that a claim was told, Free if it was granted.
func stateOf(held *store.Held) store.State {
	if held == nil {
		return store.Free
	}
	return held.State
}

func claimed(t *testing.T, held *store.Held) {
	t.Helper()
	wantState(t, held, store.Free)
}
