package main

import (
	"syscall"
	"time"
)

// pause sleeps for d, or less if a signal comes. time.Sleep often takes half a millisecond more.
func pause(d time.Duration) {
	wanted := syscall.NsecToTimespec(d.Nanoseconds())
	_ = syscall.Nanosleep(&wanted, nil) // what is missing is slept later
}
