package idem

import (
	"fmt"
	"log"
	"net/http"
	"sync"
	"time"

	"github.com/example/traefik-idem/stats"
)

// quietTime is how long a message about requests is not repeated.
const quietTime = time.Minute

// logger writes lines of key=value pairs. Traefik takes what a plugin writes to stdout as DEBUG lines and what it
// writes to stderr as ERROR lines: so errors and warnings go to stderr, the rest to stdout.
type logger struct {
	middleware string
	level      int

	mu   sync.Mutex // guards said
	said map[string]time.Time
}

const (
	levelError = iota
	levelWarn
	levelInfo
	levelDebug
)

var levelNames = []string{"error", "warn", "info", "debug"}

func newLogger(middleware, level string) *logger {
	l := &logger{middleware: middleware, said: map[string]time.Time{}}
	for i, name := range levelNames {
		if name == level {
			l.level = i
		}
	}
	return l
}

// print writes msg; cause may be nil. It is for rare events, such as a start.
func (l *logger) print(level int, msg string, cause error) {
	more := ""
	if cause != nil {
		more = fmt.Sprintf(" cause=%q", cause.Error())
	}
	l.write(level, msg, more)
}

// write writes msg and more key=value pairs.
func (l *logger) write(level int, msg, more string) {
	if level > l.level {
		return
	}
	line := fmt.Sprintf("level=%s middleware=%q msg=%q%s", levelNames[level], l.middleware, msg, more)
	if level <= levelWarn {
		log.Print(line)
		return
	}
	fmt.Println(line)
}

// started writes the one line of a handler's start, with its settings.
func (l *logger) started(settings []stats.Setting) {
	if levelInfo > l.level {
		return
	}
	line := `level=info msg="ready"`
	for _, s := range settings {
		line += fmt.Sprintf(" %s=%q", s.Name, s.Value)
	}
	fmt.Println(line)
}

// printLimited writes msg at most once in quietTime. It is for messages that every request could cause.
func (l *logger) printLimited(level int, msg string, cause error) {
	if l.due(msg) {
		l.print(level, msg, cause)
	}
}

// printLimitedAbout is printLimited for each method and path, which it adds to msg with the key's public id. It leaves out the
// query string, which may hold secrets.
func (l *logger) printLimitedAbout(level int, msg string, r *http.Request, identity string) {
	about := fmt.Sprintf(" method=%q path=%q", clipped(r.Method, longestMethod), clipped(r.URL.Path, longestPath))
	if l.due(msg + about) {
		l.write(level, msg, about+keyName(identity))
	}
}

// keyName is a key as a line of the log shows it.
func keyName(identity string) string { return " key=" + publicID(identity) }

// How many bytes of a method and of a path are written at most. Clients may invent both.
const (
	longestMethod = 32
	longestPath   = 512
)

// clipped is the beginning of text.
func clipped(text string, longest int) string {
	if len(text) <= longest {
		return text
	}
	return text[:longest] + "…"
}

// mostSaid bounds how many messages are remembered.
const mostSaid = 1000

// due reports whether text was not written within quietTime, and remembers that it is written now.
func (l *logger) due(text string) bool {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	last, said := l.said[text]
	if said && now.Sub(last) < quietTime {
		return false
	}
	if len(l.said) >= mostSaid {
		l.said = map[string]time.Time{}
	}
	l.said[text] = now
	return true
}
