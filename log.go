package idem

import (
	"fmt"
	"log"
	"sync"
	"time"

	"github.com/example/traefik-idem/stats"
)

// quietTime is for how long a message about requests is not repeated.
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

// print writes msg; cause may be nil. It is for what happens once, such as a start.
func (l *logger) print(level int, msg string, cause error) {
	if level > l.level {
		return
	}
	line := fmt.Sprintf("level=%s middleware=%q msg=%q", levelNames[level], l.middleware, msg)
	if cause != nil {
		line += fmt.Sprintf(" cause=%q", cause.Error())
	}
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

// seldom writes msg at most once in quietTime. It is for what every request could say.
func (l *logger) seldom(level int, msg string, cause error) {
	now := time.Now()
	l.mu.Lock()
	last, said := l.said[msg]
	again := !said || now.Sub(last) >= quietTime
	if again {
		l.said[msg] = now
	}
	l.mu.Unlock()
	if again {
		l.print(level, msg, cause)
	}
}
