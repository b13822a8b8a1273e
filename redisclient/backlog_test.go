package redisclient

import (
	"bytes"
	"errors"
	"fmt"
	"log"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	miniredisserver "github.com/alicebob/miniredis/v2/server"

	"github.com/example/traefik-idem/store"
)

// nobody is an address that nobody listens on. A port that was free a moment ago may be another test's by now.
const nobody = "127.0.0.1:1"

// TestAnotherClientWritesWhatIsPending closes a client of a server that does not come back, while there is something to tell it.
func TestAnotherClientWritesWhatIsPending(t *testing.T) {
	fingerprint := strings.Repeat("f", store.FingerprintSize)
	b := NewBacklog()
	c := New(Options{Address: nobody, DialTimeout: time.Minute, ReadTimeout: time.Minute, WriteTimeout: time.Minute}, b)
	k := NewKeys(c, "idem")
	record := fmt.Sprintf(store.UnknownFormat, fingerprint, "o-1")
	WriteLater(k, &store.Lease{Key: "k", Fingerprint: fingerprint, Owner: "o-1"}, record, time.Hour)
	if c.Idle() {
		t.Error("the only client of a server that is still to be told something is idle")
	}
	for c.state() == fine { // it has not been tried yet
		time.Sleep(time.Millisecond)
	}
	c.Close()
	for i := 0; i < 500; i++ { // for longer than probes pause
		if c.state() == fine {
			t.Fatal("a server that is out of reach is taken for fine, so that it is tried without a pause")
		}
		time.Sleep(time.Millisecond)
	}
	if b.Idle() {
		t.Error("what was pending is forgotten")
	}
	server := miniredis.RunT(t)
	heir := New(Options{Address: server.Addr(), DialTimeout: time.Minute, ReadTimeout: time.Minute, WriteTimeout: time.Minute}, b)
	for !heir.Idle() { // what is never told ends in the test's time-out
		time.Sleep(time.Millisecond)
	}
	value, _ := server.Get(wire(k, &store.Lease{Key: "k"})[k.start:k.end])
	if value != record {
		t.Errorf("the server has %q, want %q", value, record)
	}
	for c.state() != fine { // its watch ends, since another client writes
		time.Sleep(time.Millisecond)
	}
	kept, err := Renew(k, &store.Lease{Key: "l", Fingerprint: fingerprint, Owner: "o-2"}, time.Hour)
	if !kept || err != nil {
		t.Errorf("a lease that came by the client that is closed is renewed: %t, %v", kept, err)
	}
	heir.Close()
	if !b.Idle() {
		t.Error("a backlog that nobody uses, with nothing in it, is kept")
	}
}

// TestAServerThatIsGoneForGoodIsLeft when what it was still to be told has expired, and its client is closed.
func TestAServerThatIsGoneForGoodIsLeft(t *testing.T) {
	server := startFake(t, func([]string) string { return "" })
	b := NewBacklog()
	c := New(fast(server.address), b)
	l := leaseOf("k")
	WriteLater(NewKeys(c, "idem"), l, fmt.Sprintf(store.UnknownFormat, l.Fingerprint, l.Owner), 100*time.Millisecond)
	awaitTrue(t, func() bool { return c.state() != fine }) // it has been tried
	c.Close()
	awaitTrue(t, b.Idle)
	awaitTrue(t, func() bool { return c.state() == fine }) // it is not probed any more
	before := server.accepted()
	time.Sleep(5 * probePause)
	if n := server.accepted() - before; n > 1 {
		t.Errorf("it was connected to %d times more", n)
	}
}

// TestAClosedClientTellsNobodyThatRedisIsBack has a hook that sends something by a closed client, as the renewal of leases
// does: that must not go round without a pause while the server is out of reach.
func TestAClosedClientTellsNobodyThatRedisIsBack(t *testing.T) {
	c := New(Options{Address: nobody, DialTimeout: time.Minute, ReadTimeout: time.Minute, WriteTimeout: time.Minute}, NewBacklog())
	k := NewKeys(c, "idem")
	renew := func() {
		_, _ = Renew(k, &store.Lease{Key: "k", Fingerprint: strings.Repeat("f", store.FingerprintSize), Owner: "o-1"}, time.Hour)
	}
	var told atomic.Int32
	unhook := WhenBack(k, "test", func() {
		told.Add(1)
		renew()
	})
	defer unhook()
	renew()
	if c.state() == fine {
		t.Fatal("a server that is out of reach is fine")
	}
	c.Close()
	for c.state() != fine { // its watch ends
		time.Sleep(time.Millisecond)
	}
	time.Sleep(300 * time.Millisecond)
	if told.Load() != 0 {
		t.Errorf("it was told %d times that the server is back", told.Load())
	}
}

// TestAnAnswerThatIsTooLargeIsGivenUpByTheClientThatWrites has the client that the answer came by, with a wrong password, not
// find its server, and another one find out that it is too large.
func TestAnAnswerThatIsTooLargeIsGivenUpByTheClientThatWrites(t *testing.T) {
	server := miniredis.RunT(t)
	server.RequireAuth("right")
	var refused atomic.Int32
	server.Server().SetPreHook(func(peer *miniredisserver.Peer, _ string, args ...string) bool {
		large := len(strings.Join(args, " ")) > 10000
		if large {
			refused.Add(1)
			peer.WriteError("ERR Protocol error: invalid bulk length")
		}
		return large
	})
	b := NewBacklog()
	build := func(password string) *Client {
		c := New(Options{Address: server.Addr(), Password: password, DialTimeout: time.Minute, ReadTimeout: time.Minute, WriteTimeout: time.Minute}, b)
		t.Cleanup(c.Close)
		return c
	}
	wrong := NewKeys(build("wrong"), "idem")
	fingerprint := strings.Repeat("f", store.FingerprintSize)
	l := &store.Lease{Key: "k", Fingerprint: fingerprint, Owner: "o-1"}
	_, _ = Renew(wrong, l, time.Hour) // it learns that it cannot
	right := NewKeys(build("right"), "idem")
	WriteLater(wrong, l, store.DoneHead+fingerprint+store.StatusLines[201]+"\r\n"+strings.Repeat("x", 20000), time.Hour)
	pending := func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return hasPending(b)
	}
	for pending() && refused.Load() < 10 {
		time.Sleep(time.Millisecond)
	}
	held, err := Claim(right, &store.Lease{Key: "k", Fingerprint: fingerprint, Owner: "o-2"}, time.Hour)
	if refused.Load() != 1 || held == nil || held.State != store.Unkept || err != nil {
		t.Errorf("it was sent %d times; Redis has %+v, %v", refused.Load(), held, err)
	}
}

// logged is what is logged while a test runs.
type logged struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (l *logged) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

// find returns all that matches in what was logged.
func (l *logged) find(expression string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return regexp.MustCompile(expression).FindAllString(l.text.String(), -1)
}

func captureLog(t *testing.T) *logged {
	t.Helper()
	l, before := &logged{}, log.Writer()
	log.SetOutput(l)
	t.Cleanup(func() { log.SetOutput(before) })
	return l
}

// isWritten reports whether a backlog is empty, and its last batch has been reported.
func isWritten(b *Backlog) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.writing && nothingLeft(b)
}

// TestARecordThatIsDroppedWhileItIsWritten counts once.
func TestARecordThatIsDroppedWhileItIsWritten(t *testing.T) {
	lines := captureLog(t)
	back, writes, proceed := make(chan struct{}), make(chan struct{}), make(chan struct{})
	server := startFake(t, func(args []string) string {
		switch {
		case len(args) < 2:
		case args[1] == probeScript.sha1:
			<-back
		case args[1] == writeBackScript.sha1:
			writes <- struct{}{}
			<-proceed
		}
		return granted(args)
	})
	b := NewBacklog()
	c := New(Options{Address: server.address, DialTimeout: time.Minute, ReadTimeout: time.Minute, WriteTimeout: time.Minute}, b)
	defer c.Close()
	k := NewKeys(c, "idem")
	trip(c, down, errors.New("it is away"))
	WriteLater(k, leaseOf("k"), answerOf(""), time.Hour)
	close(back)
	<-writes
	WriteLater(k, leaseOf("l"), answerOf(strings.Repeat("x", backlogBytes)), time.Hour) // there is room for neither
	close(proceed)
	awaitTrue(t, func() bool { return isWritten(b) })
	if got := lines.find("written=.*"); len(got) != 1 || got[0] != "written=0 held=0 dropped=2" {
		t.Errorf("of two records that were dropped: %q", got)
	}
}

// TestReleasesPushNoRecordOut of what waits for a server that is away.
func TestReleasesPushNoRecordOut(t *testing.T) {
	server := stuckProbes(t, granted)
	b := NewBacklog()
	c := New(fast(server.address), b)
	defer c.Close()
	k := NewKeys(c, "idem")
	trip(c, down, errors.New("it is away"))
	WriteLater(k, leaseOf("k"), answerOf(""), time.Hour)
	for i := 0; i < 100; i++ {
		WriteLater(k, leaseOf(strings.Repeat("k", 1<<20)), "", time.Hour)
	}
	WriteLater(k, leaseOf("l"), answerOf(strings.Repeat("x", backlogBytes/4)), time.Hour)
	b.mu.Lock()
	defer b.mu.Unlock()
	first, _ := b.pending.Front().Value.(*pendingWrite)
	last, _ := b.pending.Back().Value.(*pendingWrite)
	if first.record == "" || last.record == "" || b.pending.Len() < 10 {
		t.Errorf("of %d that wait, the first has %d bytes, and the last %d", b.pending.Len(), len(first.record), len(last.record))
	}
}

// isFine reports whether a server is fine, and all know that.
func isFine(c *Client) bool {
	c.breaker.mu.Lock()
	defer c.breaker.mu.Unlock()
	return c.state() == fine
}

// TestAnOutageWithNothingToWrite is not told of later, when something is written.
func TestAnOutageWithNothingToWrite(t *testing.T) {
	lines := captureLog(t)
	server := startFake(t, granted)
	b := NewBacklog()
	c := New(fast(server.address), b)
	defer c.Close()
	k := NewKeys(c, "idem")
	for _, record := range []string{"", answerOf("")} {
		trip(c, refusing, errors.New("it is away"))
		awaitTrue(t, func() bool { return isFine(c) })
		WriteLater(k, leaseOf("k"), record, time.Hour)
		awaitTrue(t, func() bool { return isWritten(b) })
	}
	trip(c, refusing, errors.New("it is away"))
	WriteLater(k, leaseOf("k"), "", time.Hour)
	awaitTrue(t, func() bool { return isFine(c) && isWritten(b) })
	if got := lines.find("answers of the outage.*"); len(got) != 0 {
		t.Errorf("it was told that %q", got)
	}
}

// TestAnotherNodeIsBackFirst, before there is anything to write.
func TestAnotherNodeIsBackFirst(t *testing.T) {
	lines := captureLog(t)
	back := make(chan struct{})
	var away *fakeServer
	away = startFake(t, func(args []string) string {
		switch {
		case args[0] == "CLUSTER":
			return slotsAt(away.address)
		case args[1] == probeScript.sha1:
			<-back
		}
		return granted(args)
	})
	another := startFake(t, granted)
	opts := fast(away.address)
	opts.Cluster = true
	opts.ReadTimeout = time.Minute
	b := NewBacklog()
	front := New(opts, b)
	defer front.Close()
	c, k := front.cluster, NewKeys(front, "idem")
	for _, node := range []*Client{c.nodeAt(another.address), c.nodeAt(away.address)} {
		trip(node, down, errors.New("it is away"))
	}
	awaitTrue(t, func() bool { return isFine(c.nodeAt(another.address)) })
	WriteLater(k, leaseOf("k"), answerOf(""), time.Hour)
	close(back)
	awaitTrue(t, func() bool { return isWritten(b) })
	if got := lines.find("written=.*"); len(got) != 1 || got[0] != "written=1 held=0 dropped=0" {
		t.Errorf("it was told that %q", got)
	}
}
