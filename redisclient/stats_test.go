package redisclient

import (
	"strings"
	"testing"
	"time"
)

// TestASampleIsMeasured as far as it was looked at, when there is no more time.
func TestASampleIsMeasured(t *testing.T) {
	server := startFake(t, func(args []string) string {
		if args[0] == "SCAN" {
			return "*2\r\n" + bulk("1") + "*2\r\n" + bulk("idem:a") + bulk("idem:b") // half of the keyspace
		}
		return ":100\r\n"
	})
	c := New(fast(server.address), NewBacklog())
	defer c.Close()
	measured, err := NewStats(c, "idem").memoryOf(c, time.Now())
	if err != nil || measured.Keys != 2 || measured.Bytes != 200 || measured.Scanned != 0.5 || measured.Exact {
		t.Errorf("%+v, %v", measured, err)
	}
}

// TestABatchThatIsSplitIsOneSample of the time that steps take.
func TestABatchThatIsSplitIsOneSample(t *testing.T) {
	pings := make(chan string, 10)
	server := startFake(t, func(args []string) string {
		if args[0] == "PING" {
			pings <- "one"
			return "+PONG\r\n"
		}
		return granted(args)
	})
	c := New(fast(server.address), NewBacklog())
	defer c.Close()
	k := NewKeys(c, "idem")
	record := bulk(answerOf(strings.Repeat("x", longBytes/2))) + milliseconds(time.Hour)
	var commands []*command
	for range 2 * maxBuffered / longBytes {
		commands = append(commands, &command{wire: finishScript.byEVALSHA + wire(k, leaseOf("k")) + record, done: make(chan struct{}, 1)})
	}
	sampleNext(c)
	enqueue(c, commands)
	for _, cmd := range commands {
		<-cmd.done
	}
	if len(pings) != samplesAtOnce || c.samples != 0 {
		t.Errorf("%d samples were taken, and %d are left", len(pings), c.samples)
	}
}
