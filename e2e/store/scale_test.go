package store

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/example/traefik-idem/e2e/internal/hosts"
	"github.com/example/traefik-idem/e2e/internal/redistest"
	"github.com/example/traefik-idem/e2e/internal/rig"
	"github.com/example/traefik-idem/redisclient"
	"github.com/example/traefik-idem/store"
	"github.com/example/traefik-idem/store/storetest"
)

var stores atomic.Int64

// emptyStore returns the prefix of a store that has no keys, for a test that runs beside others with theirs: most of a test
// is waiting for Redis to let a key expire.
func emptyStore(t *testing.T) string {
	t.Parallel()
	return fmt.Sprintf("idem%d", stores.Add(1))
}

// TestStoreInARealRedisConforms runs the conformance suite of stores against redis-server.
func TestStoreInARealRedisConforms(t *testing.T) {
	server := redistest.Start(t)
	storetest.Run(t, func(t *testing.T) storetest.Subject {
		prefix := emptyStore(t)
		options := redisclient.Options{Address: server.Addr, DialTimeout: rig.Never, ReadTimeout: rig.Never, WriteTimeout: rig.Never}
		client := redisclient.New(options, redisclient.NewBacklog())
		t.Cleanup(client.Close)
		return storetest.Redis(redisclient.NewKeys(client, prefix), server.Pass)
	})
}

// TestNotesAreBounded has a hundred times as many keys noted as are kept, each with a long path, and others meanwhile. So are the
// list and the page of those keys.
func TestNotesAreBounded(t *testing.T) {
	const all, batch = 100 * redisclient.MaxNotes, redisclient.MaxNotes
	server := redistest.Start(t)
	options := redisclient.Options{Address: server.Addr, DialTimeout: rig.Never, ReadTimeout: rig.Never, WriteTimeout: rig.Never}
	client := redisclient.New(options, redisclient.NewBacklog())
	t.Cleanup(client.Close)
	notebook := redisclient.NewNotebook(redisclient.NewKeys(client, "idem"), "idem")
	now, known := time.Now().UnixMilli(), &redisclient.News{}
	until := time.Now().Add(time.Hour).UnixMilli()
	most := 0
	for i := 0; i < all; {
		var notes []redisclient.Note
		for range batch {
			where := "POST shop.example /" + strings.Repeat("x", 500)
			notes = append(notes, redisclient.Note{Kind: "unknown", Name: fmt.Sprintf("%016x", i), Until: until, Text: fmt.Sprintf("%064x %d %d edge %s", i, store.Unknown, now, where)})
			i++
		}
		notes = append(notes, redisclient.Note{Kind: "other", Name: fmt.Sprintf("%016x", i-1), Until: until, Text: "seen"}, redisclient.Note{Kind: "other", Name: "o" + strconv.Itoa(i), Until: until, Text: "seen"})
		var settled []redisclient.Settled
		for j := range 50 {
			settled = append(settled, redisclient.Settled{Hash: fmt.Sprintf("%064x", i+j), Version: strings.Repeat("v", 40)})
		}
		var err error
		known, err = notebook.Exchange(now, "epoch", known, settled, notes)
		if err != nil {
			t.Fatal(err)
		}
		if len(known.Settled) != 50 || known.Missed {
			t.Fatalf("told of %d, missed more: %t", len(known.Settled), known.Missed)
		}
		bytes, _ := strconv.Atoi(server.Do("MEMORY", "USAGE", "idem:keys", "SAMPLES", "0"))
		most = max(most, bytes)
	}
	fields, _ := strconv.Atoi(server.Do("HLEN", "idem:keys"))
	t.Logf("at most %d bytes, and %d fields", most, fields)
	if fields > 2*batch+2*all/batch+256+20 || most > 3<<20 {
		t.Errorf("%d fields, and at most %d bytes", fields, most)
	}
	list, err := notebook.List("unknown", now, math.MaxInt64, 200)
	if err != nil || len(list) != 200 || list[0].Name != fmt.Sprintf("%016x", all-1) || list[199].Name != fmt.Sprintf("%016x", all-200) {
		t.Errorf("%d are listed, from %+v on: %v", len(list), list[0].Name, err)
	}
	for i := all - 300; i < all; i++ {
		server.Do("SET", fmt.Sprintf("idem:req:%064x", i), fmt.Sprintf(store.UnknownFormat, strings.Repeat("f", store.FingerprintSize), "owner"), "EX", "3600")
	}
	rig.OnEveryHost(t, func(t *testing.T, host hosts.Host) {
		s := rig.Serve(t, host, rig.Created, hosts.Settings{"stats": rig.OpenStats["stats"], "lease": "10m", "redis": map[string]any{"endpoints": server.Addr, "dialTimeout": "20s", "readTimeout": "20s", "writeTimeout": "20s"}})
		for _, state := range []string{"unknown", ""} {
			if keys := s.Keys(state); len(keys) != 200 || keys[0].State != "unknown" {
				t.Errorf("%d keys of state %q are listed, from %+v on", len(keys), state, keys[0])
			}
		}
		page := s.Do(rig.Get("/_idem/"))
		rows := strings.Count(string(page.Body), `<a class="id" id="k`)
		t.Logf("the page has %d bytes", len(page.Body))
		if page.Status != 200 || rows != 200 || len(page.Body) > 400<<10 || !strings.Contains(string(page.Body), "200 or more to settle") {
			t.Errorf("page: %d, %d rows in %d bytes", page.Status, rows, len(page.Body))
		}
	})
	for i, there := range map[int]bool{all - 1: true, all - batch: true, all - batch - 1: false, 0: false} {
		note, err := notebook.Get(fmt.Sprintf("%016x", i))
		if err != nil || (note.Kind == "unknown") != there {
			t.Errorf("note %d is %.60q: %v", i, note, err)
		}
	}
	if missed, err := notebook.Exchange(now, "epoch", &redisclient.News{Epoch: known.Epoch, Version: known.Version - 300}, nil, nil); err != nil || !missed.Missed || len(missed.Settled) != 256 {
		t.Errorf("who was away for 300 is told of %d, missed more: %t, %v", len(missed.Settled), missed.Missed, err)
	}
	if other, err := notebook.Exchange(now, "epoch", &redisclient.News{Epoch: "another", Version: known.Version}, nil, nil); err != nil || other.Epoch != known.Epoch || len(other.Settled) != 256 {
		t.Errorf("who comes from another epoch is told of %d in %s: %v", len(other.Settled), other.Epoch, err)
	}
	_, err = notebook.Exchange(time.Now().Add(2*time.Hour).UnixMilli(), "epoch", known, nil, []redisclient.Note{{Kind: "unknown", Name: "last", Until: until + int64(2*time.Hour/time.Millisecond), Text: "x"}})
	list, _ = notebook.List("unknown", now, math.MaxInt64, 200)
	if err != nil || len(list) != 1 {
		t.Errorf("when all others have expired, %d are listed: %v", len(list), err)
	}
	if life, _ := strconv.Atoi(server.Do("TTL", "idem:keys")); life < 7*24*3600 {
		t.Errorf("the notes live for %d s", life)
	}
}
